"""Every `#| t4` cell runs here for two steps on a CPU, so that no Colab cell can rot.

The hub answers with random parts of the real widths (tests/parts.py). Of the notebook we run the t4 cells, and of the plain cells before
them only the statements whose names they use. Sizes are cut where they are set: dataclasses with `steps`, `n_layers` or `batch_size`, the number of clips
that are tokenized, and whole numbers in `range(…)` or a slice of the t4 cell itself."""
import ast, builtins, dataclasses, dis, importlib, pkgutil, types

import pytest

from tree import body, cells, is_leaf, module, name, notebooks

limits = dict(steps=2, max_steps=2, n_layers=2, batch_size=2, accumulate=1, val_every=1, val_batches=1)
with_t4 = [p for p in notebooks if any('t4' in c.d for c in cells(p) if c.kind=='code')]

def names(statement):
    "(globals that a statement sets or changes, globals it reads), comprehensions' and functions' own names left out"
    top = compile(ast.Module([statement], []), '', 'exec')
    stored = {i.argval for i in dis.get_instructions(top) if i.opname in ('STORE_NAME','STORE_GLOBAL')}
    loaded = {i.argval for i in dis.get_instructions(top) if i.opname.startswith('LOAD_') and isinstance(i.argval, str) and 'NAME' in i.opname}
    inner = [o for o in top.co_consts if isinstance(o, types.CodeType)]
    while inner:
        c = inner.pop()
        inner += [o for o in c.co_consts if isinstance(o, types.CodeType)]
        loaded |= {i.argval for i in dis.get_instructions(c) if i.opname in ('LOAD_GLOBAL','LOAD_NAME')}
    for o in ast.walk(statement): # m.x = … and d[k] = … change m and d
        if isinstance(o, (ast.Attribute, ast.Subscript)) and isinstance(o.ctx, ast.Store):
            while isinstance(o, (ast.Attribute, ast.Subscript)): o = o.value
            if isinstance(o, ast.Name) and o.id in loaded: stored.add(o.id)
    return stored,loaded

def parsed(cell):
    try: return ast.parse(body(cell.source))
    except SyntaxError: return ast.parse('') # a cell with a shell line; `test_nbs` forbids those in leaves

def star(o): return isinstance(o, ast.ImportFrom) and o.names[0].name=='*'

def needed(path, known):
    "What to run, in order: (cell, its tree) of each t4 cell, and of plain cells the statements that those lean on"
    code = [c for c in cells(path) if c.kind=='code' and 'export' not in c.d and 'eval:false' not in c.d]
    given,want,keep = known|set(dir(builtins)),set(),[]
    for c in reversed([c for c in code if 't4' in c.d or not is_leaf(c)]):
        mine = []
        for o in reversed(parsed(c).body):
            stored,loaded = names(o)
            if not ('t4' in c.d or stored & want or star(o)): continue
            mine.append(o)
            want = (want - stored) | (loaded - given)
        if mine: keep.append((c, ast.Module(mine[::-1], [])))
    return keep[::-1]

class Small(ast.NodeTransformer):
    "Cut the whole numbers in `range(n)`, `[:n]` and keywords that count clips"
    def visit_Call(self, o):
        self.generic_visit(o)
        if isinstance(o.func, ast.Name) and o.func.id=='range' and len(o.args)==1: o.args = [self.cut(o.args[0])]
        for k in o.keywords:
            if k.arg in (*limits, 'clips', 'n', 'n_clips', 'valid', 'max_clips'): k.value = self.cut(k.value, limits.get(k.arg, 4))
        return o
    def visit_Slice(self, o):
        if o.upper is not None: o.upper = self.cut(o.upper)
        return o
    def cut(self, o, to=4):
        return ast.copy_location(ast.Constant(min(o.value, to)), o) if isinstance(o, ast.Constant) and isinstance(o.value, int) and not isinstance(o.value, bool) else o

@pytest.fixture
def small(monkeypatch, tmp_path_factory, tmp_path):
    "Random parts instead of the hub, small numbers instead of long runs, and nothing written into the tree"
    import parts, soundlm, soundlm.hub as hub
    monkeypatch.setattr(hub, 'fetch', lambda name, *a, **kw: parts.build(name, tmp_path_factory.getbasetemp()/'hub'))
    monkeypatch.setenv('SOUNDLM_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('SOUNDLM_MAX_STEPS', '2')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    (tmp_path/'nbs').mkdir()
    monkeypatch.chdir(tmp_path/'nbs')
    for m in pkgutil.walk_packages(soundlm.__path__, 'soundlm.'):
        if m.name.rsplit('.')[-1] in ('_modidx','build','cli'): continue
        mod = importlib.import_module(m.name)
        for cls in [o for o in vars(mod).values() if isinstance(o, type) and o.__module__==m.name and dataclasses.is_dataclass(o)]:
            if limits.keys() & {f.name for f in dataclasses.fields(cls)}: cap(monkeypatch, cls)
    tokens = importlib.import_module('soundlm.tokens')
    full = tokens.tokenize
    monkeypatch.setattr(tokens, 'tokenize', lambda *a, **kw: full(*a, **(kw|dict(clips=4))))

def cap(monkeypatch, cls):
    init = cls.__init__
    def smaller(self, *a, **kw):
        init(self, *a, **kw)
        for k,v in limits.items():
            if isinstance(getattr(self, k, None), int): object.__setattr__(self, k, min(v, getattr(self, k)))
        if isinstance(getattr(self, 'precision', None), str): object.__setattr__(self, 'precision', '32-true') # this is a CPU
    monkeypatch.setattr(cls, '__init__', smaller)

@pytest.mark.parametrize('p', with_t4, ids=name)
def test_t4_cells_run(p, small):
    ns = dict(__name__='__main__', display=lambda *a, **kw: None)
    if module(p): ns.update({k:v for k,v in vars(importlib.import_module(f'soundlm.{module(p)}')).items() if not k.startswith('__')})
    ran = 0
    for c,tree in needed(p, set(ns)):
        if 't4' in c.d: tree = ast.fix_missing_locations(Small().visit(tree))
        try: exec(compile(tree, f'{p.name}: {c.source.splitlines()[0]}', 'exec'), ns)
        except Exception as e: raise AssertionError(f'this cell of {p.name} fails:\n{c.source}') from e
        ran += 't4' in c.d
    assert ran == sum('t4' in c.d for c in cells(p) if c.kind=='code')

def test_the_course_has_t4_cells():
    "The notebooks that name a real model show it running on Colab"
    have = {p.stem.split('_',1)[1] for p in with_t4}
    want = {module(p) for p in notebooks if module(p) in ('codec','music.text','music.baseline')}
    assert want <= have
