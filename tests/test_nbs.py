"The house rules that a machine can check"
import ast, getpass, io, re, tokenize
from collections import Counter

import pytest

from tree import body, cells, code, exported, is_leaf, module, name, notebooks, numbered, plain

each = pytest.mark.parametrize('p', notebooks, ids=name)
each_numbered = pytest.mark.parametrize('p', numbered, ids=name)
library = [p for p in numbered if module(p)]
each_library = pytest.mark.parametrize('p', library, ids=name)
defs = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef

def trees(p):
    "(cell, its source without directives, its top-level definitions) for each exported cell"
    for c in exported(p):
        src = body(c.source)
        yield c, src, [o for o in ast.parse(src).body if isinstance(o, defs)]
def public(o): return not o.name.startswith('_')
def lines(s): return len(s.strip().splitlines())

# names and headings
def test_numbers_and_modules_are_unique():
    for f in (lambda p: p.name.split('_')[0], lambda p: p.stem.split('_',1)[1]):
        assert [k for k,n in Counter(map(f, numbered)).items() if n>1] == []

@each_numbered
def test_name_is_module(p):
    if module(p): assert p.stem.split('_',1)[1] == module(p)

@each
def test_title_and_summary(p):
    md = next(c.source for c in cells(p) if c.kind=='markdown')
    assert re.match(r'# .+\n\n> .+', md)

@each_library
def test_ends_with_export(p):
    last = cells(p)[-1]
    assert 'nbdev_export(' in last.source and 'hide' in last.d
    assert ("'.'" in last.source) == (p.parent.name=='omni_nbs'), "notebooks of omni_nbs end in nbdev.nbdev_export('.')"

# short cells
@each
def test_short_cells(p):
    limit = lambda c: 40 if 'export' in c.d else 25
    assert [(c.source.splitlines()[1 if c.d else 0], lines(c.source)) for c in code(p) if lines(c.source)>limit(c)] == []

def test_exported_cells_stay_short():
    n = sorted(lines(body(c.source)) for p in library for c in exported(p))
    assert n[len(n)//2]<=16 and n[len(n)*9//10]<=32, 'over all notebooks: the median and the 90th percentile'

# documented exports
def said(src, node):
    "Names of arguments that carry a comment on their line, and whether the return does"
    comments = {}
    for t in tokenize.generate_tokens(io.StringIO(src).readline):
        if t.type==tokenize.COMMENT: comments[t.start[0]] = t.string
    end = node.body[0].lineno
    args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return {a.arg for a in args if a.end_lineno in comments or any(a.lineno<=n<=a.end_lineno for n in comments)}, [c for n,c in comments.items() if n<=end]

@each_library
def test_docstrings(p):
    assert [o.name for _,_,os in trees(p) for o in os if public(o) and not ast.get_docstring(o)] == []

def undocumented(src, o):
    args = [a for a in [*o.args.posonlyargs, *o.args.args, *o.args.kwonlyargs] if a.arg not in ('self','cls')]
    if o.decorator_list and any('patch' in ast.unparse(d) for d in o.decorator_list): args = args[1:] if o.args.args and o.args.args[0].arg not in ('self','cls') else args
    have,comments = said(src, o)
    # one argument and its comment may share the definition's line with the return's
    return [f'{o.name}({a.arg})' for a in args if a.arg not in have and not (len(args)==1 and comments)]

@each_library
def test_arguments_are_described(p):
    assert [m for _,src,os in trees(p) for o in os if public(o) and not isinstance(o, ast.ClassDef) for m in undocumented(src, o)] == []

@each_library
def test_tensors_have_shapes(p):
    "A public function that takes or returns a Tensor says a shape, such as (b,k,t), at least once"
    bad = []
    for _,src,os in trees(p):
        for o in os:
            if isinstance(o, ast.ClassDef) or not public(o): continue
            head = '\n'.join(src.splitlines()[o.lineno-1:o.body[0].end_lineno])
            typed = any(a.annotation is not None and 'Tensor' in ast.unparse(a.annotation) for a in o.args.args) or (o.returns is not None and 'Tensor' in ast.unparse(o.returns))
            if typed and not re.search(r'#.*(\([^)]*\)|scalar|number|shape|one value|[Ii]gnored)', head): bad.append(o.name)
    assert bad == []

@each_library
def test_exports_are_used(p):
    "Every public name is used in a cell of its notebook that is not exported"
    used = {n for c in code(p) if 'export' not in c.d for n in re.findall(r'\w+', body(c.source))}
    inside = {n for c in exported(p) for n in re.findall(r'\w+', body(c.source))}
    names = [o.name for _,_,os in trees(p) for o in os if public(o)]
    counts = Counter(n for c in exported(p) for n in re.findall(r'\w+', body(c.source)))
    assert [n for n in names if n not in used and not (n in inside and counts[n]>1)] == []

# the notebooks were run, and are fit to be committed
def speaks(c):
    "Whether a plain cell surely has an output: it prints, or ends in a bare name, attribute or subscript"
    try: tree = ast.parse(body(c.source)).body
    except SyntaxError: return False
    if not tree or body(c.source).rstrip().endswith(';'): return False
    printed = any(isinstance(o, ast.Expr) and isinstance(o.value, ast.Call) and ast.unparse(o.value.func)=='print' for o in tree)
    return printed or isinstance(tree[-1], ast.Expr) and isinstance(tree[-1].value, (ast.Name, ast.Attribute, ast.Subscript, ast.Compare, ast.BinOp))

@each
def test_is_executed(p):
    assert [c.source.splitlines()[0] for c in plain(p) if 'hide' not in c.d and 'export' not in c.d and speaks(c) and not c.outputs] == []

@each
def test_no_error_outputs(p):
    assert [o.get('ename') for c in code(p) for o in c.outputs if o['output_type']=='error'] == []

@each
def test_nothing_personal(p):
    text = p.read_text(encoding='utf-8')
    homes = re.findall(r'(?:/home/|/Users/|/root/|[A-Z]:\\\\Users|/tmp/|/var/folders/|/work/)[\w./-]*', text)
    assert homes == [], 'a path of one machine'
    me = getpass.getuser()
    if me not in ('root','runner','user','build'): assert not re.search(rf'\b{re.escape(me)}@', text)

@each
def test_file_size(p): assert p.stat().st_size < 1_000_000

def test_average_size():
    assert sum(p.stat().st_size for p in notebooks)/len(notebooks) <= 300_000

@each
def test_colab_cells(p):
    marks = [c for c in cells(p) if c.source.startswith('<!-- colab -->') or 'colab' in c.d]
    assert [c.kind for c in marks] == ['markdown','code'], 'run `make prepare`: it writes the badge and the install cell'
    assert f'/{p.parent.name}/{p.name}' in marks[0].source

# leaves, and what a course needs
@each
def test_no_magics_in_leaves(p):
    "Leaves run in a test, so they are plain Python"
    assert [c.source for c in code(p) if is_leaf(c) and 'eval:false' not in c.d and re.search(r'^\s*[!%]', c.source, re.M)] == []

@each
def test_nothing_needs_a_leaf(p):
    "A name that only a leaf defines is not used by a plain cell after it"
    def stored(c): return {o.id for o in ast.walk(ast.parse(body(c.source))) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)}
    def loaded(c): return {o.id for o in ast.walk(ast.parse(body(c.source))) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Load)}
    runs = [c for c in code(p) if not re.search(r'^\s*[!%]', c.source, re.M)]
    mine = {n for c in runs if is_leaf(c) for n in stored(c)} - {n for c in runs if not is_leaf(c) for n in stored(c)}
    assert {n for c in runs if not is_leaf(c) for n in loaded(c)} & mine == set()

@each_library
def test_exercises(p):
    "Stage notebooks end with three or four exercises and their solutions in a collapsed section"
    md = '\n\n'.join(c.source for c in cells(p) if c.kind=='markdown')
    m = re.search(r'^##+ (?:\*\*)?Exercises(?:\*\*)?\s*$(.*)', md, re.M|re.S)
    assert m, 'no section named Exercises'
    before = m[1].split('<details')[0]
    assert len(re.findall(r'^(?:\d+[.)]|[-*]) ', before, re.M)) >= 3
    assert '<details' in m[1] and '</details>' in m[1]

@each
def test_no_leftovers(p):
    text = '\n'.join(c.source for c in cells(p))
    assert re.findall(r'\b(?:TODO|FIXME|XXX)\b|NotImplementedError', text) == []
