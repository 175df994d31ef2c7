"What a notebook cell cannot hold about the metrics: properties over many shapes, parity with plain code, the shipped probe, Opus at its edges."
import json, math
import numpy as np, pytest, torch
from soundlm import hub, metrics
from soundlm.core import AudioError, HubError, SoundlmError, TokenError
from conftest import root

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
    assert saved['rows']['A'][0]['y']==dict(value=1, low=.5, high=2) and {'commit','hardware','seed'}<=set(saved['meta']) and '## B' in p.read_text()
    assert metrics.read_report(p)['rows']==dict(A=[dict(x=1., y=(1.,.5,2.))], B=[dict(z=[0,1])])
    (tmp_path/'file').write_text('')
    with pytest.raises(SoundlmError): metrics.write_report([dict(x=1)], tmp_path/'file'/'r', meta)

@pytest.mark.parametrize('bad', [float('nan'), np.float32('inf'), np.array([1.,np.nan]), (1.,float('nan'),2.)])
def test_report_holds_numbers_only(tmp_path, bad):
    meta = dict(title='T', command='c', n=1, seed=0)
    with pytest.raises(SoundlmError, match='not finite'): metrics.write_report([dict(x=bad)], tmp_path/'r', meta)
    assert not any(tmp_path.iterdir())
    metrics.write_report([dict(x=None)], tmp_path/'r', meta)
    assert json.loads((tmp_path/'r.json').read_text())['rows']==[{'x':None}] and '| – |' in (tmp_path/'r.md').read_text()

def test_shipped_reports_are_json():
    def refuse(name): raise AssertionError(name)
    for p in (root/'reports').glob('*.json'): json.loads(p.read_text(), parse_constant=refuse)

def plain_distance(a, b):
    if not a or not b: return len(a)+len(b)
    return min(plain_distance(a[1:], b)+1, plain_distance(a, b[1:])+1, plain_distance(a[1:], b[1:])+(a[0]!=b[0]))

def test_edit_distance_equals_the_definition_and_is_a_metric():
    r = np.random.default_rng(0); words = [r.integers(3, size=n).tolist() for n in (0,1,2,3,4,5,5,4)]
    for a in words:
        for b in words:
            d = metrics.edit_distance(a, b)
            assert d==plain_distance(a, b)==metrics.edit_distance(b, a) and abs(len(a)-len(b))<=d<=max(len(a), len(b))
            for c in words: assert d<=metrics.edit_distance(a, c)+metrics.edit_distance(c, b)

def test_error_rate_weighs_words_and_holds_its_rate():
    got = metrics.error_rate([['1'],[]], ['1', '2 3 4'])
    assert got['errors']==3 and got['words']==4 and got['rate'][0]==.75 and got['rate'][1]<=.75<=got['rate'][2]
    assert metrics.error_rate(['1 2 3'], ['1'])['rate'][0]==2      # insertions: beyond 1
    assert metrics.error_rate(['1'], ['1'], seed=1)==metrics.error_rate([('1',)], [['1']])
    with pytest.raises(SoundlmError): metrics.error_rate([], [])

def test_auc_equals_all_pairs():
    r = np.random.default_rng(0); a,b = r.integers(5, size=30), r.integers(4, size=20)
    want = np.mean([(x>y)+.5*(x==y) for x in a for y in b])
    assert metrics.auc(a, b)==pytest.approx(want) and metrics.auc(b, a)==pytest.approx(1-want)

def little(**kw):
    torch.manual_seed(0)
    return metrics.Recogniser(['a','b'], dict(who=['x','y']), width=3, hidden=8, **kw)

def test_recogniser_folder_that_does_not_fit(tmp_path):
    folder = little().save(tmp_path/'r', '# ears'); good = json.loads((folder/'config.json').read_text())
    assert hub.load(str(folder)).labels==['a','b']
    for bad in (good|dict(hidden=16), good|dict(labels=['a','b','c']), good|dict(depth=3), {k:v for k,v in good.items() if k!='labels'}, good|dict(width='3')):
        (folder/'config.json').write_text(json.dumps(bad))
        with pytest.raises(HubError, match='make no recogniser'): metrics.Recogniser.from_folder(folder)

def test_recogniser_takes_any_length_and_rate():
    r = little()
    for n,sr in ((SR,SR), (1,SR), (7000,8000), (SR*2,44100), (24000,24000)):
        assert set(r.predict(noise(1,n), sr)) <= {'a','b'} and r.traits(noise(1,n), sr)['who'][0] in 'xy'
        assert r(r.features(noise(1,n), sr))[0].shape[1] == -(-r.features(noise(1,n), sr).shape[-1]//4)
    for bad in (torch.zeros(1,0), torch.full((1,100), float('nan'))):
        with pytest.raises(AudioError): r.predict(bad, SR)

def test_recogniser_hears_nothing_above_four_kilohertz():
    t = torch.arange(24000)/24000; low = .2*torch.sin(2*math.pi*440*t)[None]
    r = little(); a,b = r.features(low, 24000), r.features(low+.2*torch.sin(2*math.pi*7000*t)[None], 24000)
    assert (a-b)[...,20:-20].abs().max()<.3

def test_recogniser_pools_only_what_is_there():
    "A clip filled up with zeros has the same head logits wherever the filling cannot be seen by the convolutions"
    r = little().eval(); x = torch.randn(1,40,200)-4; wide = torch.nn.functional.pad(x, (0,200), value=math.log(1e-3))
    for m in r.time: 
        if isinstance(m, torch.nn.Conv1d): m.weight.data[..., torch.arange(m.kernel_size[0])!=m.kernel_size[0]//2] = 0
    torch.nn.init.normal_(r.heads['who'].weight)
    a,b = r(x)[1]['who'], r(wide, torch.tensor([200]))[1]['who']
    assert (a-b).abs().max() < .1*a.abs().max()+.05

def test_recogniser_training_is_reproducible_and_bad_labels_are_refused(tmp_path):
    clips = [(noise(.3,8000,i), ['a','b'][:i%3], dict(who='xy'[i%2]) if i else {}) for i in range(6)]
    def run():
        r = little(); return metrics.train_recogniser(r, metrics.recogniser_data(r, clips, 8000), steps=4, batch=4)
    assert run()==run() and all(math.isfinite(v) for v in run())
    with pytest.raises(SoundlmError, match="'c'"): metrics.recogniser_data(little(), [(noise(.3,8000), ['c'])], 8000)
    little().save(tmp_path/'r', '# r'); assert hub.load(str(tmp_path/'r')).labels==['a','b']

def test_probe_embedding():
    torch.manual_seed(0); p = metrics.Probe(dict(a=['x','y']), width=3, hidden=8, centre=True)
    e = p.embed(noise(), SR); assert e.shape==(16,) and float(e.norm())==pytest.approx(1) and not e.requires_grad
    assert torch.equal(e, p.embed(noise(), SR)) and p.training
    with pytest.raises(AudioError): p.embed(torch.zeros(1,0), SR)

def test_shipped_speech_probes():
    for name,most in (('probe-digits',.5),('probe-voices',.7)):
        assert (hub.path(name)/'model.safetensors').stat().st_size < most*2**20
    ears = hub.load('probe-digits')
    assert ears.labels=='zero one two three four five six seven eight nine'.split() and ears.attributes['speaker']==['george','jackson','lucas','nicolas','yweweler']
    for level in (0,1e-3): assert ears.predict(noise(1,24000,level=level), 24000)==[]
    from soundlm.omni import corpus
    p = hub.load('probe-voices'); names = p.labels['voice'][::8]
    e = torch.stack([p.embed(corpus.speak_as(t, v), 24000) for v in names for t in ('the quick brown fox', 'where is my yellow umbrella')])
    cos,same = e@e.T, torch.arange(len(e))[:,None]//2==torch.arange(len(e))//2
    pairs = torch.ones_like(same).triu(1)
    assert metrics.auc(cos[same&pairs], cos[~same&pairs]) > .93

def test_shipped_ears_on_held_out_takes(data):
    data('speech', 'fsdd')
    from soundlm.omni import corpus
    ears = hub.load('probe-digits')
    held = [(d,s,corpus.take(d, s, n)) for d in range(10) for s in corpus.recorded for n in (5,9)]
    assert np.mean([ears.predict(w, 24000)==[corpus.digits[d]] for d,_,w in held])>=.96
    assert np.mean([ears.traits(w, 24000)['speaker'][0]==s for _,s,w in held])>=.94
    clips = list(corpus.DigitStrings('test', 60))
    assert metrics.error_rate([ears.predict(c.wav(), 24000) for c in clips], [c.text for c in clips])['rate'][0]<=.03
