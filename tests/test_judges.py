"Judges: what may be measured, three embeddings, packages that are missing or swallow errors, speed"
import math, sys, time, types
import numpy as np, pytest, torch
from soundlm import hub, judges as J
from soundlm.core import AudioError, HubError, SoundlmError
import parts

SR = 32000
def noise(seconds=2., seed=0, level=.1): return torch.randn(1, round(seconds*SR), generator=torch.Generator().manual_seed(seed))*level

@pytest.fixture(scope='module')
def clap(): return J.embedder('clap-tiny')
@pytest.fixture(scope='module')
def encodec(): return J.embedder('encodec_32khz-tiny')
names = 'clap-tiny', 'encodec_32khz-tiny', 'log-mel'
each = pytest.mark.parametrize('name', names)
@pytest.fixture(scope='module')
def ears(clap, encodec): return dict(zip(names, (clap, encodec, J.log_mel())))

# embeddings
@each
def test_shapes(ears, name):
    p = J.points(ears[name], [noise(3, i) for i in range(3)], SR, 'three', batch=2)
    assert len(p)==3 and p.flat.shape==(9 if name!='clap-tiny' else 3, p.dim) and p.dim<=128 and p.flat.dtype==np.float32
    assert p.embedding.startswith(name) and p.seconds==3 and p.name=='three'

@each
def test_batch_does_not_matter(ears, name):
    wavs = [noise(2, i) for i in range(5)]
    a,b = (J.points(ears[name], wavs, SR, 'x', batch=n) for n in (1, 5))
    np.testing.assert_allclose(a.flat, b.flat, atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(a.flat, J.points(ears[name], torch.stack(wavs), SR, 'x', batch=1).flat)

@each
def test_other_rates_hear_the_same(ears, name):
    from soundlm.audio import resample
    from soundlm.music.corpus import SynthCaps
    w = SynthCaps('test')[0].wav()[:, :2*SR]
    a,b = (np.concatenate(ears[name](*o)) for o in (([w], SR), ([resample(w, SR, 48000)], 48000)))
    assert np.linalg.norm(a-b) < .05*np.linalg.norm(a)

@each
def test_speed(ears, name):
    "At least 20 × real time; CPU time of one thread, so that a busy machine does not fail it"
    wavs = [noise(6, i) for i in range(8)]
    ears[name](wavs[:1], SR)
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    try:
        start = time.process_time(); J.points(ears[name], wavs, SR, 'x'); took = time.process_time()-start
    finally: torch.set_num_threads(threads)
    assert 8*6/took > 20

def test_clap_is_claps_own(clap):
    wavs = [noise(s, i) for i,s in enumerate((2, 2))]
    np.testing.assert_allclose(np.concatenate(clap(wavs, SR)), hub.load('clap-tiny').audio(wavs, SR).numpy(), atol=1e-5)

def test_encodec_latents(encodec):
    codec = hub.load('encodec_32khz-tiny'); x = noise(2)
    with torch.no_grad(): z = codec.model.encoder(x[None])[0]
    np.testing.assert_allclose(encodec([x], SR)[0], torch.stack([z[:,:50].mean(1), z[:,50:].mean(1)]).numpy(), atol=1e-5)

def test_published_widths(tmp_path):
    for name,dim,rate in (('laion/larger_clap_music', 512, 48000), ('facebook/encodec_32khz', 128, 32000)):
        e = J.embedder(str(parts.build(name, tmp_path)))
        assert (e.dim, e.sample_rate)==(dim, rate) and e([noise(2)], SR)[0].shape[1]==dim

def test_a_loaded_part(): assert J.embedder(hub.load('clap-tiny')).title==J.embedder('clap-tiny').title

@pytest.mark.parametrize('name', ['probe-music', 'bpe-tiny', 't5-tiny', 'mel_32khz', 'log-mels', ''])
def test_no_embedding(name):
    with pytest.raises(SoundlmError, match='embedding|Embeddings'): J.embedder(name)

# sets
@pytest.mark.parametrize('change,says', [
    (dict(wavs=[]), 'no clip'), (dict(sample_rate=[SR,44100]), '32000 Hz, 44100 Hz'), (dict(sample_rate=[SR]*3), '3 sample rates'),
    (dict(sample_rate=0), 'sample rate'), (dict(sample_rate=None), 'sample rate'), (dict(sample_rate=True), 'sample rate'), (dict(sample_rate=44100.5), 'sample rate'),
    (dict(wavs=[noise(2), noise(1)]), 'Clip 1 .* 1.000 s'), (dict(seconds=3), 'Clip 0 .* expected 3.000 s'),
    (dict(wavs=[noise(2), torch.zeros(1,2*SR)]), 'Clip 1 .* silent'), (dict(wavs=[noise(2), noise(2)*math.nan]), 'Clip 1 .* NaN'),
    (dict(wavs=[noise(2), torch.full((1,2*SR), math.inf)]), 'infinite'), (dict(wavs=[torch.zeros(1,0)]), '0 samples'),
    (dict(wavs=[torch.ones(2,SR)]), 'mono'), (dict(wavs=[torch.ones(SR)]), 'mono'), (dict(wavs=[np.ones((1,SR))]), 'shape'), (dict(silent='maybe'), 'silent=')])
def test_bad_sets(change, says):
    with pytest.raises(SoundlmError, match=says): J.points(J.log_mel(), **(dict(wavs=[noise(2), noise(2,1)], sample_rate=SR, name='bad')|change))

@each
def test_silence_can_be_kept(ears, name):
    wavs = [noise(2), torch.zeros(1,2*SR), noise(2)*1e-7]
    p = J.points(ears[name], wavs, SR, 'quiet', silent='keep')
    assert len(p)==3 and np.isfinite(p.flat).all() and not np.allclose(p.values[0], p.values[1])
    assert len(J.points(ears[name], [wavs[1]]*2, SR, 'mute', silent='keep'))==2

def test_cut_to_seconds():
    p = J.points(J.log_mel(), [noise(2), noise(3)], [SR,SR], 'cut', seconds=1.5)
    assert p.seconds==1.5 and len(p.values[0])==2

@pytest.mark.parametrize('values,says', [([], 'no clip'), ([np.ones(3)], 'shape'), ([np.ones((1,3)), np.ones((1,4))], 'shape'), ([np.ones((0,3))], 'shape'),
    ([np.ones((1,3)), np.full((1,3), math.nan)], 'clip 1'), ([np.full((1,3), math.inf)], 'clip 0')])
def test_bad_points(values, says):
    with pytest.raises(SoundlmError, match=says): J.Points(values, 'by hand', 1., 'bad')

def test_take():
    p = J.Points([np.full((2,3), i) for i in range(4)], 'by hand', 1., 'all')
    q = p.take([3,3,0], 'some')
    assert (len(q), q.name, q.flat[:,0].tolist())==(3, 'some', [3,3,3,3,0,0]) and p.take(range(2)).name=='all'

# packages
def missing(monkeypatch, *modules):
    for m in modules: monkeypatch.setitem(sys.modules, m, None)

@pytest.mark.parametrize('module,call', [('frechet_audio_distance', lambda: J.embedder('vggish')), ('frechet_audio_distance', lambda: J.embedder('pann')),
    ('hear21passt.base', lambda: J.passt_kld([noise()], [noise()], SR)), ('onnxruntime', lambda: J.dnsmos(noise(), SR)), ('torchmetrics.functional.audio.dnsmos', lambda: J.dnsmos(noise(), SR))])
def test_missing_package(monkeypatch, module, call):
    if module.startswith('torchmetrics'): # the ones it looks for first are there
        for m in ('onnxruntime','requests'): monkeypatch.setitem(sys.modules, m, types.ModuleType(m))
    missing(monkeypatch, module)
    with pytest.raises(SoundlmError, match=r'pip install "soundlm\[judges\]"'): call()

class Package:
    "Like `frechet_audio_distance.FrechetAudioDistance`: prints what went wrong and goes on"
    def __init__(self, model_name, sample_rate): self.model_name,self.sample_rate,self.fail = model_name,sample_rate,None
    def get_embeddings(self, x, sr):
        if self.fail=='raise': print('get_embeddings throw an exception: no such file'); return np.concatenate([], axis=0)
        if self.fail=='nan': return np.full(2048, math.nan)
        return np.concatenate([np.full(2048, w.mean()) if self.model_name=='pann' else np.full((3,128), w.mean()) for w in x])

@pytest.fixture
def package(monkeypatch):
    mod = types.ModuleType('frechet_audio_distance'); mod.FrechetAudioDistance = Package
    monkeypatch.setitem(sys.modules, 'frechet_audio_distance', mod)
    monkeypatch.setattr('importlib.metadata.version', lambda name: '0.0')
    return mod

@pytest.mark.parametrize('name,shape', [('vggish', (3,128)), ('pann', (1,2048))])
def test_package_embeds_clip_by_clip(package, name, shape):
    e = J.embedder(name)
    assert [o.shape for o in e([noise(), noise(seed=1)], SR)]==[shape]*2 and (e.dim, e.sample_rate)==(shape[1], 16000)

@pytest.mark.parametrize('fail', ['raise','nan'])
def test_package_errors_are_not_swallowed(package, monkeypatch, fail):
    e = J.embedder('pann')
    monkeypatch.setattr(Package, '__init__', lambda self, model_name, sample_rate: self.__dict__.update(model_name=model_name, sample_rate=sample_rate, fail=fail))
    with pytest.raises(SoundlmError, match='gave no embedding'): J.embedder('pann')([noise()], SR)

def test_package_without_network(package, monkeypatch):
    def no(self, **kw): raise OSError('no route to host')
    monkeypatch.setattr(Package, '__init__', no)
    with pytest.raises(SoundlmError, match='no route'): J.embedder('vggish')

# judges of one thing
def test_kl():
    p = np.array([[.5,.5],[.9,.1]])
    np.testing.assert_allclose(J.kl(p, p), 0, atol=1e-5)
    np.testing.assert_allclose(J.kl(p[:1], p[1:]), [.9*math.log(1.8)+.1*math.log(.2)], atol=1e-5)
    np.testing.assert_allclose(J.kl([[1.,0.]], [[0.,1.]]), [-math.log(1e-6)], atol=1e-3)
    t = torch.softmax(torch.randn(6, 527, generator=torch.Generator().manual_seed(0)), -1)
    want = torch.nn.functional.kl_div((t[:3]+1e-6).log(), t[3:], reduction='none').sum(-1)
    np.testing.assert_allclose(J.kl(t[:3], t[3:]), want, rtol=1e-4)

@pytest.mark.parametrize('a,b', [([[.5,.6]],[[.5,.5]]), ([[.5,.5]],[[-.5,1.5]]), ([[math.nan,1]],[[.5,.5]]), ([[1.]],[[.5,.5]]), ([],[]), ([.5,.5],[.5,.5])])
def test_no_posteriors(a, b):
    with pytest.raises(SoundlmError, match='kl got'): J.kl(a, b)

def tagger(x): return torch.stack([x.std(-1), x.abs().amax(-1)], -1)

def test_passt_windows():
    x = torch.cat([noise(10, 0), noise(5, 1, .5), noise(.1)], -1)
    want = (tagger(x[:, :10*SR]).softmax(-1)+tagger(x[:, 10*SR:]).softmax(-1))/2
    np.testing.assert_allclose(J.posteriors(tagger, [x], SR), want, atol=1e-6) # the last 0.1 s are in the second window
    assert np.allclose(J.posteriors(tagger, [x[:, :10*SR], x[:, :10*SR+800]], SR)[0], J.posteriors(tagger, [x[:, :10*SR+800]], SR)[0]) # 25 ms are not heard
    assert J.posteriors(tagger, [noise(.05)], SR).shape==(1,2)

def test_passt_kld():
    a,b = [noise(1, i) for i in range(4)], [noise(1, i, .5) for i in range(4)]
    assert abs(J.passt_kld(a, a, SR, tagger)[0])<1e-5 < J.passt_kld(a, b, SR, tagger)[0]
    for bad in ((a, b[:3]), ([], [])):
        with pytest.raises(SoundlmError, match='one reference a clip'): J.passt_kld(*bad, SR, tagger)

def test_dnsmos_order_and_weights(monkeypatch):
    for m in ('onnxruntime','requests'): monkeypatch.setitem(sys.modules, m, types.ModuleType(m))
    mod = types.ModuleType('torchmetrics.functional.audio.dnsmos'); got = {}
    def score(x, fs, personalized): got.update(n=x.shape[-1], fs=fs); return torch.tensor([3.,3.5,4.,3.2])
    mod.deep_noise_suppression_mean_opinion_score = score
    monkeypatch.setitem(sys.modules, mod.__name__, mod)
    out = J.dnsmos(noise(1), SR)
    assert got==dict(n=16000, fs=16000) and (out['p808'], out['signal'], out['background'], round(out['overall'], 3))==(3, 3.5, 4, 3.2)
    def fail(*a, **kw): raise OSError('connection refused')
    mod.deep_noise_suppression_mean_opinion_score = fail
    with pytest.raises(SoundlmError, match='weights of DNSMOS'): J.dnsmos(noise(1), SR)
    def bug(*a, **kw): raise KeyError('a mistake of ours')
    mod.deep_noise_suppression_mean_opinion_score = bug
    with pytest.raises(KeyError): J.dnsmos(noise(1), SR)

def test_speakers(data):
    "Real recordings: digits by five people"
    from soundlm.audio import read
    folder,probe = data('speech','fsdd'), hub.load('probe-voices')
    files = sorted(folder.rglob('*.wav'))+sorted(folder.rglob('*.flac'))
    assert files, f'no sound in {folder}'
    who = {}
    for f in files: who.setdefault(f.stem.split('_')[1], []).append(f)
    speakers = [v for v in who.values() if len(v)>=40][:5]
    def clip(v, i): return torch.cat([read(f)[0] for f in v[i:i+8]], -1)
    rate = read(files[0])[1]
    a,b = [clip(v, 0) for v in speakers], [clip(v, 20) for v in speakers]
    own,others = J.speaker_similarity(a, b, rate, probe), J.speaker_similarity(a, b[1:]+b[:1], rate, probe)
    assert own.mean()>others.mean()

def test_speakers_that_omni_speaks_as():
    "Needs no recordings: five recorded voices as the shipped model speaks them, each against itself and against the next"
    omni, probe = hub.load('omni'), hub.load('probe-voices')
    from soundlm.omni.corpus import recorded as voices
    a,b = ([omni.speak(t, v, seed=i) for i,v in enumerate(voices)] for t in ('three one four one five', 'two seven one eight two'))
    own,others = J.speaker_similarity(a, b, 24_000, probe), J.speaker_similarity(a, b[1:]+b[:1], 24_000, probe)
    assert own.mean()>others.mean()+.2 and (own>others).sum()>=4

def test_speakers_refused():
    probe = hub.load('probe-voices')
    for a,b,p in (([noise()], [], probe), ([], [], probe), ([noise()], [noise()], None)):
        with pytest.raises(SoundlmError): J.speaker_similarity(a, b, SR, p)
    assert J.speaker_similarity([noise()], [noise()], SR, probe)[0]==pytest.approx(1, abs=1e-5)
