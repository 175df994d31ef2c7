"`nbdev_test` runs cells in the notebook's namespace: what an exported function borrows from there is missing on import"
import builtins, dis, importlib, types

import pytest

from tree import dotted, modules

optional = {'nbdev': 'dev'} # modules that only an extra brings

def code_objects(c):
    yield c
    for o in c.co_consts:
        if isinstance(o, types.CodeType): yield from code_objects(o)

@pytest.mark.parametrize('p', modules, ids=dotted)
def test_no_notebook_globals(p):
    src = p.read_text(encoding='utf-8')
    mod = importlib.import_module(dotted(p))
    used = {i.argval for c in code_objects(compile(src, str(p), 'exec')) for i in dis.get_instructions(c) if i.opname=='LOAD_GLOBAL'}
    assert used - set(vars(mod)) - set(dir(builtins)) == set(), 'defined in the notebook, but not exported'

@pytest.mark.parametrize('p', modules, ids=dotted)
def test_all_is_there(p):
    mod = importlib.import_module(dotted(p))
    assert [o for o in getattr(mod, '__all__', []) if not hasattr(mod, o)] == []
