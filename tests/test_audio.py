"Sound files as they come: broken off, empty, many-channelled, and a disk that fills up"
import errno, struct, warnings
from pathlib import Path
import numpy as np, pytest, soundfile as sf, torch
from soundlm import audio
from soundlm.core import AudioError, SoundlmError, SoundlmWarning, atomic

@pytest.fixture
def tone(): return 0.5*torch.sin(torch.arange(16000)*0.2)[None]

def messages(f):
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        res = f()
    return res,[str(w.message) for w in ws if issubclass(w.category, SoundlmWarning)]

@pytest.mark.parametrize('suffix,tol', [('.wav',1e-4), ('.flac',1e-4), ('.ogg',0.1), ('.mp3',0.1)])
def test_formats(tmp_path, tone, suffix, tol):
    path = audio.save(tmp_path/f'a{suffix}', tone, 16000)
    wav,sr = audio.load(path)
    assert sr==16000 and wav.dtype==torch.float32 and len(wav)==1
    assert abs(wav.shape[-1]-16000)<3000 # MP3 pads
    assert abs(wav.square().mean().sqrt()-tone.square().mean().sqrt())<tol
    assert [o.name for o in tmp_path.iterdir()]==[path.name]

def test_eight_channels_at_8khz(tmp_path):
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (8000,8)).astype('float32')
    sf.write(tmp_path/'a.wav', x, 8000, subtype='FLOAT')
    (wav,sr),said = messages(lambda: audio.load(tmp_path/'a.wav'))
    assert sr==8000 and said==['8-channel audio was mixed down to mono']
    torch.testing.assert_close(wav[0], torch.tensor(x.mean(1)))
    (wav,sr),said = messages(lambda: audio.load(tmp_path/'a.wav', 32000))
    assert sr==32000 and wav.shape==(1,32000)
    assert said==['8-channel audio was mixed down to mono', '8000 Hz audio was resampled to 32000 Hz']

def test_mono_at_the_right_rate_is_silent_about_it(tmp_path, tone):
    audio.save(tmp_path/'a.wav', tone, 16000)
    assert messages(lambda: audio.load(tmp_path/'a.wav', 16000))[1]==[]

@pytest.mark.parametrize('suffix', ['.wav','.flac'])
@pytest.mark.parametrize('keep', [0., 0.001, 0.5, 0.97])
def test_broken_off(tmp_path, suffix, keep):
    noise = torch.rand(1, 48000, generator=torch.Generator().manual_seed(0))-0.5
    data = audio.encode(noise, 16000, suffix[1:].upper())
    path = tmp_path/f'a{suffix}'
    path.write_bytes(data[:int(len(data)*keep)])
    with pytest.raises(AudioError, match='a'+suffix): audio.load(path)

def test_length_unknown_is_not_broken_off(tmp_path, tone):
    "Programs that write a WAV to a pipe cannot go back to fill in its length"
    data = bytearray(audio.encode(tone, 16000))
    at = data.index(b'data')+4
    data[at:at+4] = struct.pack('<I', 0xffffffff)
    (tmp_path/'a.wav').write_bytes(data)
    assert audio.load(tmp_path/'a.wav')[0].shape==(1,16000)

@pytest.mark.parametrize('content', [b'', b'\0'*5000, b'<html>not found</html>', b'RIFF'], ids=['empty','zeros','page','riff'])
def test_no_audio(tmp_path, content):
    (tmp_path/'a.wav').write_bytes(content)
    with pytest.raises(AudioError, match='a.wav'): audio.load(tmp_path/'a.wav')

def test_missing_or_folder(tmp_path):
    for path in (tmp_path/'no.wav', tmp_path):
        with pytest.raises(AudioError, match='expected a sound file'): audio.load(path)

@pytest.mark.parametrize('x,said', [(np.zeros(0), '0 samples'), (np.array([0.,np.nan]), '1 NaN'), (np.array([np.inf,0.]), 'infinite')])
def test_empty_or_not_finite(tmp_path, x, said):
    sf.write(tmp_path/'a.wav', x.astype('float32'), 16000, subtype='FLOAT')
    with pytest.raises(AudioError, match=said): audio.load(tmp_path/'a.wav')
    with pytest.raises(AudioError, match=said): audio.save(tmp_path/'b.wav', torch.tensor(x, dtype=torch.float32)[None], 16000)
    assert not (tmp_path/'b.wav').exists()

def test_too_loud_is_turned_down_not_cut(tmp_path, tone):
    path,said = messages(lambda: audio.save(tmp_path/'a.wav', tone*4, 16000))
    assert len(said)==1 and 'turned down' in said[0]
    wav = audio.load(path)[0]
    assert wav.abs().max()<=0.9901
    torch.testing.assert_close(wav/wav.abs().max(), tone/tone.abs().max(), atol=1e-3, rtol=0)

def no_space(*args, **kw): raise OSError(errno.ENOSPC, 'No space left on device')

@pytest.mark.parametrize('before', [None, b'old'])
def test_full_disk_leaves_nothing(tmp_path, tone, monkeypatch, before):
    path = tmp_path/'a.wav'
    if before: path.write_bytes(before)
    monkeypatch.setattr(Path, 'write_bytes', no_space)
    with pytest.raises(SoundlmError, match='free some space'): audio.save(path, tone, 16000)
    assert [o.name for o in tmp_path.iterdir()]==(['a.wav'] if before else [])
    if before: assert path.read_bytes()==before

@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs Linux\'s /dev/full')
def test_a_real_enospc(tmp_path):
    with pytest.raises(SoundlmError, match='No space left'):
        with atomic(tmp_path/'a'), open('/dev/full', 'w') as f: f.write('x'*100000)
    assert list(tmp_path.iterdir())==[]

def test_interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with atomic(tmp_path/'a') as tmp:
            tmp.write_text('half')
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir())==[]

def test_unwritable(tmp_path, tone):
    (tmp_path/'file').write_text('x')
    with pytest.raises(SoundlmError, match='Cannot write'): audio.save(tmp_path/'file'/'a.wav', tone, 16000)
    with pytest.raises(SoundlmError, match='Cannot write'): audio.save('/proc/a.wav' if Path('/proc').exists() else '/dev/null/a.wav', tone, 16000)
    with pytest.raises(AudioError, match='.flac'): audio.save(tmp_path/'a.docx', tone, 16000)

@pytest.mark.parametrize('rate', [8000, 16000, 22050, 24000, 44100, 48000])
def test_resample_keeps_length_and_pitch(rate):
    wav = torch.sin(2*torch.pi*1000*torch.arange(rate)/rate)[None]
    res = audio.resample(wav, rate, 32000)
    assert abs(res.shape[-1]-32000)<=1
    assert abs(torch.fft.rfft(res).abs().argmax().item()-1000)<=1
