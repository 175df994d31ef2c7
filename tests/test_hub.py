"Faults around the hub: no network, wrong names, damaged or malicious files, full disk, another codec"
import errno, os, socket, subprocess, sys, time
from pathlib import Path
import pytest, torch
from soundlm import hub
from soundlm.core import HubError, SoundlmError

class Part(torch.nn.Module):
    def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.zeros(64))
    @classmethod
    def from_folder(cls, folder):
        res = cls()
        res.load_state_dict(hub.read_weights(folder))
        return res

def make(folder, value=1., **config):
    return hub.save(folder, hub.to_fp16({'w':torch.full((64,), value)}), {'model_type':'part', **config}, hub.card(folder.name, 'A part.', {}))

@pytest.fixture
def own_zoo(tmp_path, monkeypatch):
    monkeypatch.setenv('SOUNDLM_ZOO', str(tmp_path))
    monkeypatch.setitem(hub.kinds, 'part', f'{__name__}:Part')
    make(tmp_path/'mel_32khz')
    return tmp_path

# --- names
def test_zoo_folder_and_relative(own_zoo, monkeypatch):
    monkeypatch.chdir(own_zoo)
    for name in ('mel_32khz', own_zoo/'mel_32khz', './mel_32khz'):
        part = hub.load(name)
        assert (part.name, part.sha, part.training)==('mel_32khz', hub.weights_sha(own_zoo/'mel_32khz'), False)
        assert part.w.dtype==torch.float32

@pytest.mark.parametrize('name,said', [('mel_32kz','Did you mean mel_32khz'), ('MEL_32KHZ ','mel_32khz'), ('','expected one of'),
    ('a/b/c','expected one of'), ('./none','expected a folder'), ('..','config.json'), ('nothing-like-it','mel_32khz')])
def test_unknown_names(own_zoo, name, said):
    with pytest.raises(HubError, match=said): hub.load(name)

def test_unknown_type_and_missing_module(own_zoo, monkeypatch):
    make(own_zoo/'new', model_type='enkodec')
    with pytest.raises(HubError, match='encodec'): hub.load('new')
    for target in ('soundlm.nowhere:X', 'soundlm.core:Nowhere'):
        monkeypatch.setitem(hub.kinds, 'part', target)
        with pytest.raises(HubError, match=target): hub.load('mel_32khz')

# --- damaged files
@pytest.mark.parametrize('keep', [0, 4, 40, -1])
def test_truncated_safetensors(own_zoo, keep):
    path = own_zoo/'mel_32khz'/'model.safetensors'
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(HubError, match='truncated'): hub.load('mel_32khz')

@pytest.mark.parametrize('keep', [0, 20, 0.5, 0.98])
def test_truncated_bin(tmp_path, keep):
    path = tmp_path/'pytorch_model.bin'
    torch.save({'w':torch.zeros(1000)}, path)
    data = path.read_bytes()
    path.write_bytes(data[:int(keep*len(data)) if keep<1 else keep])
    with pytest.raises(HubError, match='damaged'): hub.read_weights(tmp_path)

@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '\0'])
def test_broken_config(own_zoo, text):
    (own_zoo/'mel_32khz'/'config.json').write_text(text)
    with pytest.raises(HubError, match='config.json'): hub.load('mel_32khz')

def test_missing_weights(own_zoo):
    (own_zoo/'mel_32khz'/'model.safetensors').unlink()
    with pytest.raises(HubError, match='no weights'): hub.load('mel_32khz')

def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'ran'),)
    torch.save({'w':Evil()}, tmp_path/'pytorch_model.bin')
    with pytest.raises(HubError, match='not unpickled'): hub.read_weights(tmp_path)
    assert not (tmp_path/'ran').exists()

def test_bin_is_read_and_safetensors_preferred(tmp_path):
    torch.save({'w':torch.ones(3).half()}, tmp_path/'pytorch_model.bin')
    torch.testing.assert_close(hub.read_weights(tmp_path)['w'], torch.ones(3))
    make(tmp_path, 2.)
    assert hub.read_weights(tmp_path)['w'][0]==2
    (tmp_path/'b').mkdir()
    torch.save({'model':{'w':torch.ones(3)}}, tmp_path/'b'/'pytorch_model.bin')
    with pytest.raises(HubError, match='flat'): hub.read_weights(tmp_path/'b')

def test_shards(tmp_path):
    from safetensors.torch import save_file
    for i in range(2): save_file({f'w{i}':torch.full((2,), float(i))}, tmp_path/f'model-0000{i+1}-of-00002.safetensors')
    assert sorted(hub.read_weights(tmp_path))==['w0','w1']

# --- writing
def no_space(*args, **kw): raise OSError(errno.ENOSPC, 'No space left on device')

def test_full_disk(own_zoo, monkeypatch):
    sha = hub.weights_sha(own_zoo/'mel_32khz')
    monkeypatch.setattr(Path, 'write_bytes', no_space)
    for name in ('mel_32khz','new'):
        with pytest.raises(SoundlmError, match='free some space'): make(own_zoo/name, 3.)
    assert [o.name for o in own_zoo.iterdir()]==['mel_32khz']
    assert hub.weights_sha(own_zoo/'mel_32khz')==sha and len(list((own_zoo/'mel_32khz').iterdir()))==3

def test_unwritable(tmp_path):
    (tmp_path/'file').write_text('x')
    with pytest.raises(SoundlmError, match='Cannot write'): make(tmp_path/'file'/'part')
    with pytest.raises(SoundlmError, match='Cannot write'): make(tmp_path/'file')
    assert [o.name for o in tmp_path.iterdir()]==['file']

def test_rounding(tmp_path):
    state = {'w':torch.randn(1000), 'n':torch.arange(3)}
    a = hub.to_fp16(state)
    make_sha = lambda s: hub.weights_sha(hub.save(tmp_path/'p', s, {'model_type':'part'}, ''))
    assert make_sha(a)==make_sha(hub.to_fp16({k:v.float() if v.is_floating_point() else v for k,v in a.items()})) # rounding twice is rounding once
    back = hub.read_weights(tmp_path/'p')
    assert torch.equal(back['w'], a['w'].float()) and torch.equal(back['n'], state['n'])
    with pytest.raises(HubError, match='65504'): hub.to_fp16({'w':torch.tensor([1e6])})

def test_shared_and_strided_tensors(tmp_path):
    w = torch.arange(6.).view(2,3)
    make_state = {'a':w, 'b':w, 'c':w.t()}
    hub.save(tmp_path/'p', make_state, {}, '')
    for k,v in hub.read_weights(tmp_path/'p').items(): torch.testing.assert_close(v, make_state[k])

# --- parts
def test_parts_are_checked(own_zoo):
    sha = hub.weights_sha(own_zoo/'mel_32khz')
    make(own_zoo/'music', parts={'codec':{'name':'mel_32khz','sha':sha}})
    assert hub.load('music').parts['codec'].sha==sha
    make(own_zoo/'other', 2.)
    with pytest.raises(HubError) as e: hub.load('music', parts={'codec':hub.load('other')})
    assert 'mel_32khz' in str(e.value) and 'other' in str(e.value) and sha in str(e.value)
    make(own_zoo/'mel_32khz', 3.)
    with pytest.raises(HubError, match=sha): hub.load('music')

@pytest.mark.parametrize('parts', [{'codec':{}}, {'codec':None}, {'codec':'mel_32khz'}, {'codec':{'name':'mel_32khz'}}, {'codec':{'name':1,'sha':2}}, [], ['codec'], None])
def test_broken_parts(own_zoo, parts):
    make(own_zoo/'music', parts=parts)
    with pytest.raises(HubError, match='music.*a name and a sha'): hub.load('music')

# --- the hub
code = """import sys, time
from soundlm import hub
from soundlm.core import HubError
t = time.time()
try: hub.load(sys.argv[1])
except HubError as e: print(f'{time.time()-t:.2f}', e)"""

def run_online(name, tmp_path, **env):
    "In a fresh process, because the endpoint is read on import; the hub is not switched off"
    env = {k:v for k,v in os.environ.items() if k not in ('HF_HUB_OFFLINE','TRANSFORMERS_OFFLINE')} | {'HF_HOME':str(tmp_path)} | env
    t = time.time()
    out = subprocess.run([sys.executable, '-c', code, name], env=env, capture_output=True, text=True, timeout=120, check=True).stdout
    assert time.time()-t<60
    return float(out.split()[0]),out

@pytest.fixture
def closed():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    return f'http://127.0.0.1:{port}'

@pytest.fixture
def mute():
    "A server that takes the connection and never answers"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen(8)
        yield f'http://127.0.0.1:{s.getsockname()[1]}'

@pytest.mark.parametrize('server', ['closed','mute'])
def test_no_hub_within_10s(server, request, tmp_path):
    seconds,out = run_online('facebook/encodec_32khz', tmp_path, HF_ENDPOINT=request.getfixturevalue(server))
    assert 'encodec_32khz-tiny' in out and 'cannot be reached' in out
    assert seconds<10

def test_offline_names_every_twin(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    for real,twin in hub.twins.items():
        with pytest.raises(HubError, match=f"twin '{twin}'"): hub.path(real, revision='0'*40)

def test_bad_hub_id(monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    with pytest.raises(HubError, match='no such model'): hub.path('face book/encodec_32khz')
