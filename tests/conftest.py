"What the tests share: a quiet offline environment, the notebooks as data, and a reason for each skip"
import os, sys
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('SOUNDLM_QUIET', '1')
os.environ.setdefault('MPLBACKEND', 'agg')
os.environ['PYTHONUTF8'] = '1'

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).parent))

@pytest.fixture
def data():
    "A function from a path below SOUNDLM_DATA to that path; skips where the recordings are not there"
    def get(*parts):
        top = os.environ.get('SOUNDLM_DATA')
        if not top: pytest.skip('needs recordings: set SOUNDLM_DATA to a folder with speech/, music/, midi/, text/')
        path = Path(top).joinpath(*parts)
        if not path.exists(): pytest.skip(f"needs {'/'.join(parts)} below SOUNDLM_DATA")
        return path
    return get

@pytest.fixture
def zoo():
    "A function from a zoo name to its folder; fails where a shipped part is missing"
    def get(name):
        path = root/'data'/'zoo'/name
        assert (path/'config.json').exists(), f'{name} is missing from data/zoo'
        return path
    return get
