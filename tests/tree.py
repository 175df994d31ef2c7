"Notebooks and modules as data, for the tests of the tree itself"
import json, re
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

root = Path(__file__).resolve().parent.parent
folders = 'nbs', 'omni_nbs'
leaves = 't4', 'cuda', 'slow', 'hub', 'notest'

def directives(source):
    "The `#|` words at the top of a cell (read here again, so that no test leans on what it tests)"
    res = set()
    for line in source.splitlines():
        if not line.strip().startswith('#|'): break
        res.add(re.match(r'#\|\s*([\w-]+)', line.strip())[1] + (':false' if re.search(r':\s*false\s*$', line) else ''))
    return res

@lru_cache(None)
def cells(path):
    "Every cell: kind, source, directives, outputs"
    nb = json.loads(Path(path).read_text(encoding='utf-8'))
    res = []
    for c in nb['cells']:
        src = ''.join(c['source'])
        res.append(SimpleNamespace(kind=c['cell_type'], source=src, d=directives(src) if c['cell_type']=='code' else set(),
            outputs=c.get('outputs', []), raw=c))
    return res

def code(path): return [c for c in cells(path) if c.kind=='code' and 'colab' not in c.d]
def exported(path): return [c for c in code(path) if 'export' in c.d]
def is_leaf(c): return bool(c.d & set(leaves)) or 'eval:false' in c.d
def plain(path): return [c for c in code(path) if not is_leaf(c) and not c.d & {'default_exp'} and 'nbdev_export(' not in c.source]
def module(path):
    m = re.search(r'^#\|\s*default_exp\s+(\S+)', '\n'.join(c.source for c in code(path)), re.M)
    return m and m[1]
def body(source): return '\n'.join(l for l in source.splitlines() if not l.startswith('#|'))

notebooks = sorted(p for d in folders for p in (root/d).glob('[!_.]*.ipynb'))
numbered = [p for p in notebooks if p.name[0].isdigit()]
modules = sorted(p for p in (root/'soundlm').rglob('*.py') if not p.name.startswith('_'))
def name(path): return path.stem
def dotted(path): return '.'.join(path.relative_to(root).with_suffix('').parts)
