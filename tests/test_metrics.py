"What a notebook cell cannot hold about the metrics: properties over many shapes, parity with plain code, the shipped probe, Opus at its edges."
import json, math
import numpy as np, pytest, torch
from soundlm import hub, metrics
from soundlm.core import AudioError, HubError, SoundlmError, TokenError

SR = 32000
def noise(seconds=1., sr=SR, seed=0, level=.1): return torch.randn(1, int(seconds*sr), generator=torch.Generator().manual_seed(seed))*level

def test_wilson_against_the_definition():
    "The bounds solve |p-q| = z·sqrt(q(1-q)/n)"
    for k,n in [(1,7),(50,100),(199,200)]:
        p,*bounds = metrics.wilson(k,n)
        for q in bounds: assert abs(abs(p-q)-1.96*math.sqrt(q*(1-q)/n)) < 1e-9
    assert metrics.wilson(0,5)[1]==0 and metrics.wilson(5,5)[2]==1

def test_wilson_holds_95_percent():
    k = np.random.default_rng(0).binomial(40, .9, 2000)
    hold = np.mean([lo<=.9<=hi for _,lo,hi in (metrics.wilson(int(i),40) for i in k)])
    assert .92 < hold < .98

def test_bootstrap_is_deterministic_and_weighted():
    x = np.arange(10.)
    assert metrics.bootstrap_mean(x)==metrics.bootstrap_mean(x) and metrics.bootstrap_mean(x)!=metrics.bootstrap_mean(x, seed=1)
    assert metrics.bootstrap_mean(x, np.eye(10)[3]+1e-9)[0]==pytest.approx(3, abs=1e-6)
    m,lo,hi = metrics.bootstrap_mean([2.]*5); assert m==lo==hi==2

@pytest.mark.parametrize('shape', [(SR,), (1,SR), (3,1,SR), (1,100), (1,1)])
def test_mel_distance_shapes(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))*.1
    assert metrics.mel_distance(x, x, SR)==0
    assert 0 < metrics.mel_distance(x, x*0, SR) and math.isfinite(metrics.mel_distance(x, x*0, SR))

@pytest.mark.parametrize('sr', [8000, 16000, 24000, 32000, 44100])
def test_mel_distance_symmetric_at_every_rate(sr):
    x,y = noise(.5,sr), noise(.5,sr,1)
    for hz in (None, 4000): assert metrics.mel_distance(x,y,sr,hz)==pytest.approx(metrics.mel_distance(y,x,sr,hz), rel=1e-5)

def test_mel_distance_batch_is_the_mean():
    a,b,c,d = (noise(.5,seed=i,level=.05*(i+1)) for i in range(4))
    both = metrics.mel_distance(torch.stack([a,b]), torch.stack([c,d]), SR)
    assert both==pytest.approx((metrics.mel_distance(a,c,SR)+metrics.mel_distance(b,d,SR))/2, rel=1e-5)

def test_mel_filters_have_no_empty_band():
    for sr in (24000,32000):
        for n in (512,1024,2048,4096):
            for hz in (None,4000): assert (metrics.mel_filters(sr, n, n//32, hz).sum(1)>0).all(), (sr,n,hz)

def test_mel_distance_lengths():
    x = noise()
    assert metrics.mel_distance(x, x[..., :-640], SR)==0
    for y in (x[..., :SR//2], x[..., :0]):
        with pytest.raises(AudioError): metrics.mel_distance(x, y, SR)

def test_opus_silence_rates_and_length():
    for n in (SR, 12345, 640):
        y,kbps = metrics.opus(torch.zeros(1,n), SR, 12)
        assert y.shape==(1,n) and y.abs().max()<1e-3 and kbps>0
    got = [metrics.opus(noise(4), SR, k)[1] for k in (8.5,12,24,64)]
    assert got==sorted(got) and all(abs(g-k)/k<.4 for g,k in zip(got,(8.5,12,24,64)))
    for k in (0,300,float('nan')):
        with pytest.raises(AudioError): metrics.opus(noise(), SR, k)

def test_perplexity_equals_the_plain_loop():
    c = np.random.default_rng(0).integers(7, size=(3,2,50))
    for i,got in enumerate(metrics.perplexity(torch.tensor(c), 7)):
        p = [np.mean(c[:,i]==v) for v in range(7)]
        assert got==pytest.approx(math.exp(-sum(q*math.log(q) for q in p if q)))
    assert len(metrics.perplexity([np.zeros((2,5)), np.zeros((2,10)), np.zeros((2,20))], 4))==3

def test_interpolated_is_a_distribution_even_for_unseen_codes():
    K,r = 11,np.random.default_rng(0)
    t = metrics.Interpolated(K).fit(r.integers(5, size=(20,2,30)))     # entries 5…10 never occur
    for prev in (0,7,10):
        total = sum(math.exp(-t.nats(np.array([[[prev,c]]*2]))[0][0,1]) for c in range(K))
        assert total==pytest.approx(1)
    assert all(w.sum()==pytest.approx(1) and (w>=0).all() for w in t.w)

def test_interpolated_equals_a_plain_dictionary():
    K,r = 9,np.random.default_rng(1); train,held = r.integers(K, size=(12,1,25)), r.integers(K, size=(3,1,25))
    t = metrics.Interpolated(K).fit(train); w = t.w[0]; pairs,starts,uni = {},{},np.ones(K)
    for row in train[:,0]:
        for p,c in zip([K,*row[:-1]], row): pairs[p,c] = pairs.get((p,c),0)+1; starts[p] = starts.get(p,0)+1; uni[c] += 1
    uni /= uni.sum()
    for row,got in zip(held[:,0], t.nats(held)[0]):
        for p,c,g in zip([K,*row[:-1]], row, got):
            bi = pairs.get((p,c),0)/starts[p] if p in starts else uni[c]
            assert g==pytest.approx(-math.log(w@[bi,uni[c],1/K]))

def test_tables_beat_uniform_where_there_is_something_to_learn():
    r = np.random.default_rng(0); base = r.integers(32, size=(60,1,1)); codes = (base+np.cumsum(r.random((60,2,80))<.3, -1))%32
    res = metrics.table_nll(codes[:50], codes[50:], 32)
    assert res['interpolated']['nll'][0] < res['unigram']['nll'][0]-1 and res['uniform']['nll'][0]==pytest.approx(math.log(32))
    for v in res.values(): assert set(v)=={'nll_1','nll_2','nll'} and all(lo<=m<=hi for m,lo,hi in v.values())

def test_strided_codebooks():
    r = np.random.default_rng(0); codes = [r.integers(16, size=(8,t)) for t in (10,20,40)]
    res = metrics.table_nll(codes, codes, 16)['unigram']
    want = np.average([res[f'nll_{i}'][0] for i in (1,2,3)], weights=(10,20,40))
    assert res['nll'][0]==pytest.approx(want)

def test_nll_restores_mode_and_needs_no_grad():
    class LM(torch.nn.Module):
        def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.ones(()))
        def loss(self, batch):
            assert not self.training and not torch.is_grad_enabled()
            return dict(loss=self.w, nll_1=self.w, nll_2=self.w*3)
    lm = LM().train(); got = metrics.nll(lm, [dict(codes=torch.zeros(2,2,5))]*3)
    assert lm.training and got['nll'][0]==2

def test_probe_takes_any_length_and_rate():
    p = metrics.Probe(dict(a=['x','y']), width=3, hidden=8)
    for n,sr in ((SR,SR), (1,SR), (7000,8000), (SR*2,44100)):
        (label,prob), = p.predict(torch.randn(1,n)*.1, sr).values()
        assert label in 'xy' and 0<prob<=1
    with pytest.raises(AudioError): p.predict(torch.zeros(1,0), SR)

def test_probe_training_is_reproducible():
    feats,targets = torch.randn(16,16,40).half()-4, dict(a=torch.arange(16)%2)
    def run():
        torch.manual_seed(0); p = metrics.Probe(dict(a=['x','y']), n_mels=16, width=3, hidden=8)
        return metrics.train_probe(p, feats, targets, steps=5, batch=4)
    assert run()==run()

def test_probe_errors(tmp_path):
    p = metrics.Probe(dict(a=['x','y']), width=3, hidden=8)
    p.save(tmp_path/'p', '# probe'); assert hub.load(str(tmp_path/'p')).labels=={'a':['x','y']}
    f = tmp_path/'p'/'model.safetensors'; f.write_bytes(f.read_bytes()[:200])
    with pytest.raises(HubError): metrics.Probe.from_folder(tmp_path/'p')

def test_shipped_probe():
    from soundlm.music import corpus
    p = hub.load('probe-music')
    assert (hub.path('probe-music')/'model.safetensors').stat().st_size < .65*2**20
    assert set(p.labels['style'])==set(corpus.styles) and set(p.labels['instrument'])==set(corpus.instruments) and set(p.labels['family'])==set(corpus.families)
    clips = [corpus.SynthCaps('test')[i] for i in range(60)]
    got = [p.predict(c.wav(1), c.sample_rate) for c in clips]
    for k,floor in dict(style=.9, family=.85, instrument=.75).items(): assert np.mean([g[k][0]==c.attributes[k] for g,c in zip(got,clips)])>=floor, k

def test_codec_row_asks_for_clips():
    with pytest.raises(SoundlmError): metrics.codec_row('x', None, [], SR)

def test_report_is_whole_or_not_there(tmp_path):
    meta = dict(title='T', command='c', n=1, seed=0)
    rows = {'A':[dict(x=1., y=(1.,.5,np.float32(2)))], 'B':[dict(z=np.arange(2))]}
    p = metrics.write_report(rows, tmp_path/'sub'/'r', meta)
    saved = json.loads((tmp_path/'sub'/'r.json').read_text())
    assert saved['rows']['A'][0]['y']==[1,.5,2] and {'commit','hardware','seed'}<=set(saved['meta']) and '## B' in p.read_text()
    (tmp_path/'file').write_text('')
    with pytest.raises(SoundlmError): metrics.write_report([dict(x=1)], tmp_path/'file'/'r', meta)
