"Public packages as references: their own code runs, and what it imports without needing it here may be missing"
import importlib, importlib.util, sys, types
from contextlib import contextmanager
from pathlib import Path

def found(name):
    "Where a package is; `make test` installs those that the parity tests hold ours against"
    spec = importlib.util.find_spec(name)
    assert spec, f'{name} is missing: `make test` installs it, or pip install --no-deps {name}'
    return Path(spec.origin).parent

class Empty(types.ModuleType):
    "Any name can be imported from it; nothing of it is called"
    def __getattr__(self, name):
        if name.startswith('__'): raise AttributeError(name)
        return object

def importable(name):
    try: importlib.import_module(name); return True
    except (ImportError, OSError, AttributeError): return False

@contextmanager
def borrowed(package, folders, empty):
    "Inside, modules of `package` import without its `__init__`, and `empty` stand in for what is not installed; afterwards all of them are gone"
    top = found(package)
    mine = {f'{package}.{o}'.rstrip('.'):top/o for o in folders}
    saved = {k:sys.modules.pop(k) for k in list(sys.modules) if k.split('.')[0]==package}
    lacking = [n for n in empty if not importable(n)]
    for k,p in mine.items(): sys.modules[k] = types.ModuleType(k); sys.modules[k].__path__ = [str(p)]
    for n in lacking: sys.modules[n] = Empty(n); sys.modules[n].__path__ = []
    try: yield
    finally:
        for k in [k for k in sys.modules if k.split('.')[0]==package or k in lacking]: del sys.modules[k]
        sys.modules.update(saved)
