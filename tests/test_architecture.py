"Imports point one way, and what a user starts is light"
import ast, json, os, re, subprocess, sys

import pytest

from tree import dotted, modules, root

light = 'torch', 'transformers', 'datasets', 'lightning', 'librosa', 'matplotlib', 'numba', 'wandb', 'snac', 'IPython', 'scipy', 'sklearn', 'pandas'

def layer(mod):
    "0 base, 1 music and omni, 2 projector, 3 command line and app; build stands apart"
    top = mod.split('.')[1] if '.' in mod else ''
    if top in ('music','omni'): return 1
    return dict(projector=2, cli=3, app=3, build=9).get(top, 0)

def imports(path):
    "Modules of this package that a module imports, anywhere in it, with the line"
    mod = dotted(path)
    for o in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(o, ast.Import): yield from ((a.name, o.lineno) for a in o.names if a.name.split('.')[0]=='soundlm')
        if isinstance(o, ast.ImportFrom):
            parts = mod.split('.')[:-o.level] if o.level else []
            full = '.'.join([*parts, *([o.module] if o.module else [])])
            if full.split('.')[0]!='soundlm': continue
            for a in o.names:
                sub = f'{full}.{a.name}'
                yield (sub if any(dotted(m)==sub for m in modules) else full), o.lineno

def at_import(path):
    "Top-level imports only: what `import module` itself pulls in"
    for o in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(o, ast.Import): yield from (a.name for a in o.names)
        if isinstance(o, ast.ImportFrom) and not o.level: yield o.module

@pytest.mark.parametrize('p', modules, ids=dotted)
def test_imports_point_down(p):
    me = dotted(p)
    bad = [f'line {n}: {o}' for o,n in imports(p) if layer(o)>layer(me) and me!='soundlm.build']
    assert bad == [], f'{me} imports from a layer above it'

@pytest.mark.parametrize('p', [m for m in modules if layer(dotted(m))==1], ids=dotted)
def test_tracks_do_not_meet(p):
    me = dotted(p).split('.')[1]
    other = dict(music='omni', omni='music')[me]
    assert [o for o,_ in imports(p) if o.startswith(f'soundlm.{other}')] == [], 'what both tracks need belongs to the base'

@pytest.mark.parametrize('p', modules, ids=dotted)
def test_nothing_imports_build(p):
    if dotted(p)!='soundlm.build': assert [o for o,_ in imports(p) if o=='soundlm.build'] == []

def graph():
    "module → modules it imports when it is imported"
    res = {}
    for p in modules:
        top = {n.lineno for n in ast.parse(p.read_text(encoding='utf-8')).body if isinstance(n, (ast.Import, ast.ImportFrom))}
        res[dotted(p)] = {o for o,n in imports(p) if n in top}
    return res

def test_no_import_cycle():
    g,done,path = graph(),set(),[]
    def visit(m):
        assert m not in path, 'import cycle: ' + ' → '.join(path[path.index(m):]+[m])
        if m in done: return
        path.append(m)
        for o in sorted(g.get(m, ())): visit(o)
        path.pop(); done.add(m)
    for m in g: visit(m)

@pytest.mark.parametrize('name', ['soundlm', 'soundlm.core', 'soundlm.cli'])
def test_light_import(name):
    code = f"import sys, json, {name}; print(json.dumps(sorted(o for o in {light!r} if o in sys.modules)))"
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root, check=True)
    assert json.loads(res.stdout.splitlines()[-1]) == []

def seconds(cmd):
    "CPU time of a process, the best of three: on an idle machine it is the wait, and a busy one does not change it much"
    best = 99.
    for _ in range(3):
        before = os.times()
        subprocess.run(cmd, capture_output=True, check=True, cwd=root)
        after = os.times()
        best = min(best, after.children_user+after.children_system-before.children_user-before.children_system)
    return best

@pytest.mark.parametrize('what', ['import', 'help'])
def test_starts_under_a_second(what):
    cmd = [sys.executable, '-c', 'import soundlm' if what=='import' else "import sys; sys.argv=['soundlm','--help']; from soundlm.cli import main; main()"]
    assert seconds(cmd) < 1.

@pytest.mark.parametrize('p', modules, ids=dotted)
def test_no_star_imports(p):
    stars = [o.lineno for o in ast.walk(ast.parse(p.read_text(encoding='utf-8'))) if isinstance(o, ast.ImportFrom) and o.names[0].name=='*']
    assert stars == []

def test_root_holds_nothing_else():
    res = subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True, text=True)
    if res.returncode: pytest.skip('not a git checkout')
    top = {o.split('/')[0] for o in res.stdout.splitlines()}
    files = {'README.md','LICENSE','CONTRIBUTING.md','CHANGELOG.md','Makefile','settings.ini','setup.py','constraints.txt'}
    dirs = {'nbs','omni_nbs','soundlm','tests','data','reports','docs'}
    assert {o for o in top if not o.startswith('.')} <= files|dirs

def test_tracked_size():
    res = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True)
    if res.returncode: pytest.skip('not a git checkout')
    size = {o: (root/o).stat().st_size for o in res.stdout.split('\0') if o and (root/o).is_file()}
    assert sum(size.values()) < 56*2**20
    assert sum(v for k,v in size.items() if k.startswith('data/zoo/')) < 46*2**20
    assert sum(v for k,v in size.items() if k.startswith('reports/') or re.match(r'data/[^/]+\.csv$', k)) < 4*2**20
    assert [k for k in size if re.search(r'\.(wav|flac|mp3|mid|ckpt|pt|pkl)$', k)] == [], 'recordings and checkpoints are never committed'
