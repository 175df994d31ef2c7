"Distances: parity with closed forms and other code, what cannot be compared, properties, bias, intervals, sanity on sound"
import importlib, math
import numpy as np, pytest, torch
from soundlm import distance as D
from soundlm.core import SoundlmError
from soundlm.judges import Points, log_mel
from reference import borrowed

def draw(n=40, d=8, seed=0, shift=0., m=1): return np.random.default_rng([n, d, seed]).normal(size=(n,m,d))+shift/d**.5
def P(values, name='x', **kw): return Points(list(values), **(dict(embedding='normal', seconds=1., name=name)|kw))
def gauss(*a, **kw): return P(draw(*a, **kw))
def spread(g, d): return (lambda a: a@a.T/d)(g.normal(size=(d,d)))

# parity
@pytest.mark.parametrize('d', [1, 2, 16, 128])
def test_closed_form_diagonal(d):
    g = np.random.default_rng(d)
    m,k,a,b = g.normal(size=d), g.normal(size=d), g.exponential(size=d), g.exponential(size=d)
    assert D.frechet(m, np.diag(a), k, np.diag(b))==pytest.approx(((m-k)**2).sum()+((a**.5-b**.5)**2).sum(), rel=1e-6)

@pytest.mark.parametrize('d', [2, 16, 128])
def test_closed_form_commuting(d):
    g = np.random.default_rng(d)
    q,a,b = np.linalg.qr(g.normal(size=(d,d)))[0], g.exponential(size=d), g.exponential(size=d)
    assert D.frechet(np.zeros(d), (q*a)@q.T, np.zeros(d), (q*b)@q.T)==pytest.approx(((a**.5-b**.5)**2).sum(), rel=1e-6)

@pytest.mark.parametrize('d', [3, 16, 64])
def test_sqrtm(d):
    "At four points a dimension and more"
    from scipy.linalg import sqrtm
    for s,n in enumerate((4*d, 8*d)):
        g = np.random.default_rng([d, s])
        (m,A),(k,B) = (D.moments(g.normal(size=(n,d))@g.normal(size=(d,d))+g.normal(size=d)) for _ in range(2))
        want = ((m-k)**2).sum()+np.trace(A+B-2*sqrtm(A@B)).real
        assert D.frechet(m, A, k, B)==pytest.approx(want, rel=1e-6)

def test_moments_are_numpys():
    x = np.random.default_rng(0).normal(size=(20,5)).astype(np.float32)
    mean,cov = D.moments(x)
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-6); np.testing.assert_allclose(cov, np.cov(x, rowvar=False), atol=1e-6)

def test_parity_with_frechet_audio_distance():
    "The package's own statistics and distance"
    with borrowed('frechet_audio_distance', [''], ('resampy','torchlibrosa','torchlibrosa.stft','torchlibrosa.augmentation','laion_clap','encodec')):
        theirs = object.__new__(importlib.import_module('frechet_audio_distance.fad').FrechetAudioDistance)
    for d,n in ((16,100), (64,400), (128,600), (128,100)):
        g = np.random.default_rng([d, n])
        x,y = (g.normal(size=(n,d))@g.normal(size=(d,d))+g.normal(size=d) for _ in range(2))
        want = theirs.calculate_frechet_distance(*theirs.calculate_embd_statistics(x), *theirs.calculate_embd_statistics(y))
        assert D.frechet(*D.moments(x), *D.moments(y))==pytest.approx(want, rel=1e-4)

def test_kad_by_hand():
    "The paper's formula, pair by pair"
    x,y = draw(7, 3, 0, m=2), draw(7, 3, 1, .5, 2)
    width = np.median([np.linalg.norm(y[i,a]-y[j,b]) for i in range(7) for j in range(i) for a in range(2) for b in range(2)])
    k = lambda p, q: np.exp(-((p-q)**2).sum()/2/width**2)
    mean = lambda u, v, pairs: np.mean([k(u[i,a], v[j,b]) for i,j in pairs for a in range(2) for b in range(2)])
    off,every = [(i,j) for i in range(7) for j in range(7) if i!=j], [(i,j) for i in range(7) for j in range(7)]
    for paired,across in ((True,off), (False,every)):
        want = mean(x, x, off)+mean(y, y, off)-2*mean(x, y, across)
        got = D.kad(P(x), P(y), paired=paired)
        assert got.value==pytest.approx(want, abs=1e-6) and got.more['bandwidth']==pytest.approx(width, rel=1e-5)

def test_kernel_in_blocks():
    x,y = draw(9, 4, 0, m=3), draw(5, 4, 1, m=3)
    np.testing.assert_allclose(D.clip_kernel(x, y, 1.5, block=1), D.clip_kernel(x, y, 1.5), rtol=1e-10)

# what cannot be compared
metrics = pytest.mark.parametrize('metric', [D.fad, D.fad_inf, D.kad])
@metrics
@pytest.mark.parametrize('x,ref,says', [
    (gauss(20), gauss(21), r'20 clips .* take\(20\)'), (gauss(1), gauss(1), 'at least'), (gauss(20), P(draw(20), embedding='other'), 'same embedding'),
    (gauss(20), P(draw(20), seconds=10.), 'seconds=1'), (gauss(20, m=2), gauss(20, m=3), 'one length'), (gauss(20, 8), gauss(20, 9), 'numbers a point'),
    (draw(20), draw(20), 'expected Points'), (gauss(20), None, 'NoneType')])
def test_refused(metric, x, ref, says):
    with pytest.raises(SoundlmError, match=says): metric(x, ref)
    if ref is not None: # the other way round as well
        with pytest.raises(SoundlmError): metric(ref, x)

def test_nan_never_gets_in():
    x = draw(5); x[3,0,2] = math.nan
    with pytest.raises(SoundlmError, match='clip 3'): P(x)
    with pytest.raises(SoundlmError, match='NaN'): D.frechet([0.], [[math.inf]], [0.], [[1.]])
    with pytest.raises(SoundlmError, match='shape|expected'): D.frechet([0.,0.], [[1.]], [0.], [[1.]])

def test_other_bad_arguments():
    x,y = gauss(20), gauss(20, seed=1)
    for f in (D.fad, D.fad_inf, D.kad):
        with pytest.raises(SoundlmError, match='draws'): f(x, y, draws=2)
    for sizes in ([20], [10,20], [1,10,20], [10,20,30], []):
        with pytest.raises(SoundlmError, match='fad_inf got'): D.fad_inf(x, y, sizes)
    with pytest.raises(SoundlmError, match='alike'): D.kad(x, P([draw(1)[0]]*20))
    with pytest.raises(SoundlmError, match='at least 2'): D.diversity_of(gauss(1))

# properties
@metrics
def test_carries_all(metric):
    o = metric(gauss(20, 4, 0, m=2), P(draw(20, 4, 1, m=2), 'reference'), draws=20)
    row = o.row()
    assert row.items() >= dict(n=20, embedding='normal', reference='reference', seconds=1., set='x', windows=2, dim=4).items()
    assert o.low<=o.value<=o.high and all(isinstance(getattr(o, k), float) for k in ('value','low','high'))
    import json; json.dumps(row, allow_nan=False)
    assert metric(gauss(20, 4, 0, m=2), P(draw(20, 4, 1, m=2), 'reference'), draws=20)==o

@pytest.mark.parametrize('d,n', [(4,40), (30,20), (64,8)])
def test_fad_properties(d, n):
    x,y = draw(n, d, 0), draw(n, d, 1, .5)
    value,tol = D.fad(P(x), P(y), draws=10).value, dict(rel=1e-6, abs=1e-6)
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(d,d)))[0]
    assert value>0 and D.fad(P(x), P(x), draws=10).value==pytest.approx(0, abs=1e-6)
    for a,b in ((y, x), (x[::-1], y), (x@q, y@q), (x+3, y+3)): assert D.fad(P(a), P(b), draws=10).value==pytest.approx(value, rel=1e-4)
    assert D.fad(P(2*x), P(2*y), draws=10).value==pytest.approx(4*value, rel=1e-4)

def test_kad_properties():
    x,y = draw(30, 6, 0), draw(30, 6, 1, 1.)
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(6,6)))[0]
    k = lambda a, b, **kw: D.kad(P(a), P(b), draws=10, **kw).value
    assert k(x, x)==0 and k(x, y)==pytest.approx(k(y, x, width=D.bandwidth(y.astype(np.float32))), abs=1e-5)
    assert k(x, y)==pytest.approx(k(x[::-1], y[::-1]), abs=1e-6)==pytest.approx(k(x@q+1, y@q+1), abs=1e-5)==pytest.approx(k(2*x, 2*y), abs=1e-5)
    assert k(x, y, paired=False)==pytest.approx(k(x[::-1], y, paired=False), abs=1e-6)

def test_weights_are_repeats_without_meeting():
    x,y = draw(6, 3, 0), draw(6, 3, 1)
    k = D.clip_kernel(x, x, 1.), D.clip_kernel(y, y, 1.), D.clip_kernel(x, y, 1.)
    w = np.array([2,1,0,3,0,0])
    pick = np.repeat(np.arange(6), w); off = pick[:,None]!=pick
    want = sum(c*o[np.ix_(pick, pick)][off].mean() for c,o in zip((1,1,-2), k))
    assert D.mmd(*k, w)==pytest.approx(want) and D.mmd(*k, np.ones(6))==pytest.approx(D.mmd(*k))

def test_diversity():
    x = gauss(20)
    mean,low,high = D.diversity_of(x)
    d = [np.linalg.norm(a-b) for i,a in enumerate(x.flat) for b in x.flat[:i]]
    assert low<mean<high and mean==pytest.approx(np.mean(d), rel=1e-5)
    assert D.diversity_of(x.take([1]*5))==(0, 0, 0)

# bias
def test_kad_is_unbiased_fad_is_not():
    pairs = [(gauss(100, 64, 2*s), gauss(100, 64, 2*s+1)) for s in range(20)]
    kad,fad,inf = ([f(*p, draws=10).value for p in pairs] for f in (D.kad, D.fad, D.fad_inf))
    assert max(map(abs, kad))<=.02 and abs(np.mean(kad))<=3*np.std(kad)/len(kad)**.5
    assert np.mean(fad)/64==pytest.approx(2/100+65/200, rel=.05) # of unit variance each, so 64 in all
    assert abs(np.mean(inf))<.1*np.mean(fad)

def test_paired_copies_do_not_bias():
    "Clip i of x is clip i of the reference, a little changed: unrelated pairs only, or KAD falls below 0"
    got = [[D.kad(P(r+draw(30, 6, s+50)*.05), P(r), draws=10, paired=p).value for p in (True, False)] for s in range(10) for r in [draw(30, 6, s)]]
    assert abs(np.mean(got, 0)[0])<.002 and np.mean(got, 0)[1]<-.01

def test_extrapolation():
    assert D.extrapolate([8,16,32], [2+4/8,2+4/16,2+4/32])==pytest.approx((2,4,1))
    o = D.fad_inf(gauss(200, 8, 0, 2.), gauss(200, 8, 1), draws=20)
    assert o.more['r2']>.9 and o.more['enough'] and len(o.more['curve'])==len(o.more['sizes']) and o.low<4<o.high
    assert not D.fad_inf(gauss(40, 64), gauss(40, 64, 1), draws=10).more['enough']

@pytest.mark.parametrize('metric', [D.fad, D.kad])
def test_intervals_cover(metric):
    "95 % intervals of 80 pairs of sets hold the mean about as often"
    runs = [metric(gauss(40, 6, 2*s, 1.5), gauss(40, 6, 2*s+1), draws=60, **(dict(width=3.4) if metric is D.kad else {})) for s in range(80)]
    truth = np.mean([o.value for o in runs])
    assert np.mean([o.low<=truth<=o.high for o in runs])>=.83
    width = np.mean([o.high-o.low for o in runs])/3.92/np.std([o.value for o in runs])
    assert .7<width<1.4 # of what a normal interval of this spread has: one that holds everything is none

def test_windows_of_a_clip_are_not_independent():
    "Six equal windows a clip tell no more than one"
    x,y = draw(30, 4, 0, 1.), draw(30, 4, 1)
    six = lambda o: P(np.repeat(o, 6, 1))
    for f in (D.fad, D.kad):
        a,b = f(P(x), P(y)), f(six(x), six(y))
        assert b.high-b.low==pytest.approx(a.high-a.low, rel=.25)

# sound
def test_noise_and_low_pass():
    x = torch.randn(1, 32000, generator=torch.Generator().manual_seed(0))
    for db in (20, 0): assert 10*math.log10(x.square().mean()/(D.add_noise(x, db)-x).square().mean())==pytest.approx(db, abs=.1)
    assert torch.equal(D.add_noise(x, 10, 3), D.add_noise(x, 10, 3)) and not torch.equal(D.add_noise(x, 10, 3), D.add_noise(x, 10, 4))
    low = torch.fft.rfft(D.low_pass(x, 32000, 3000)).abs()
    assert low[0,3002:].max()<1e-2 and low[0,:3000].mean()>100

def test_harm_refuses():
    w = [torch.randn(1,100) for _ in range(17)]
    for bad in (w, w[:8], []):
        with pytest.raises(SoundlmError, match='even number'): D.harm(bad, 32000)
    with pytest.raises(SoundlmError, match='another style'): D.harm(w[:16], 32000, w[:3])
    assert 'another style' not in D.harm(w[:16], 32000)

def test_judged():
    row = lambda k, v, w=.1: dict(level=k, value=v, low=v-w, high=v+w)
    rows = [row('identical', 0.), row('half against half', -.05), row('noise at 20 dB', .2), row('noise at 10 dB', .1), row('low-pass', -.1)]
    assert [r['right'] for r in D.judged(rows)]==[None, True, True, False, False]
    assert [r['right'] for r in D.judged([row('a', .5), row('b', .4), row('c', .6)], (('a','b'), ('a','c')), higher=True)]==[None, True, False]
    assert D.judged([row('identical', 0.), row('half against half', -.5)])[1]['right'] is False

def test_sanity_orders_sound():
    "On clips of the corpus, with the embedding that needs no weights"
    from soundlm.music.corpus import SynthCaps
    wavs = [c.wav()[:, :2*32000] for c in SynthCaps('test')[:32]]
    rows = D.sanity(log_mel(), wavs, 32000, draws=20)
    assert len(rows)==3*6 and [r for r in rows if r['right'] is False]==[]
    assert {r['metric'] for r in rows}=={'FAD','FAD∞','KAD'} and all(r['n']==16 and r['seconds']==2 for r in rows)
    for m in ('FAD','FAD∞','KAD'):
        at = {r['level']: r for r in rows if r['metric']==m}
        half, worst = at['half against half'], at['noise at 0 dB']
        assert abs(at['identical']['value'])<1e-6 and half['high']-half['low']<worst['value']-half['value']<np.inf # the floor is narrow beside what it has to tell apart
        if m!='FAD': assert half['low']<=0<=half['high'] # unbiased: the floor is 0
    assert at['half against half']['high']<at['low-pass']['low'] # KAD hears a dull set beyond doubt

@pytest.mark.parametrize('lie,wrong', [(-.05, {'half against half'}), (0., {'noise at 20 dB','noise at 10 dB','noise at 0 dB','low-pass'})])
def test_sanity_finds_a_bad_metric(lie, wrong):
    "One that is surely below 0 for other clips of the same kind, and one that hears nothing"
    def metric(x, ref, draws): return D.Distance('lie', v := 0. if x.name=='identical' else lie, v-.01, v+.01, len(x), x.embedding, ref.name, x.seconds)
    wavs = [torch.randn(1, 8000, generator=torch.Generator().manual_seed(i)) for i in range(16)]
    rows = D.sanity(log_mel(), wavs, 32000, metrics=(metric,))
    assert wrong<={r['level'] for r in rows if r['right'] is False} and {r['level'] for r in rows if r['right'] is None}=={'identical'}
    if not lie: assert next(r for r in rows if r['level']=='half against half')['right']
