"Long music: the plan covers, nothing is rewritten, memory stays as it is"
from dataclasses import replace
import math, random, weakref
import pytest, torch
from soundlm.core import SoundlmError
from soundlm.music import long as L
from soundlm.music.baseline import MusicA, music_a_tiny
from soundlm.music.fusion import MusicB, music_b_tiny
from soundlm.sample import Sampler

try: from hypothesis import given, settings, strategies as st
except ImportError: st = None

small = dict(dim=32, n_heads=2, n_layers=2, text_dim=16, codebook_size=24)
own = Sampler(top_k=20, guidance=2.)

def build(kind, layout, window=12, **kw):
    torch.manual_seed(0)
    if kind=='a': m = MusicA(music_a_tiny(**small, layout=layout, max_frames=window, **kw))
    else: m = MusicB(music_b_tiny(**small, layout=layout, max_frames=window, hidden=48, prompt_frames=20, **kw))
    for p in m.parameters(): torch.nn.init.normal_(p, std=.2)
    m.parts = dict(codec=Codec(), encoder=Encoder())
    return m.eval().requires_grad_(False)

class Codec:
    "A frame sounds as four samples, its codes"
    sample_rate, codebooks, codebook_size, frame_rate = 200, 4, 24, 50.
    def to(self, device): return self
    def decode(self, codes): return codes.transpose(1,2).flatten(1)[:,None].float()/24
class Encoder:
    dim = 16
    def to(self, device): return self
    def encode(self, prompts):
        x = torch.stack([torch.randn(5, 16, generator=torch.Generator().manual_seed(len(p))) for p in prompts])
        return x, torch.ones(len(prompts), 5).bool()

def text(b=2): return torch.randn(b, 5, 16, generator=torch.Generator().manual_seed(1)), torch.ones(b, 5).bool()
def some(b, t): return torch.randint(24, (b,4,t), generator=torch.Generator().manual_seed(t))

each = pytest.mark.parametrize('kind,layout', [('a','flat'), ('a','delay'), ('b','flat'), ('b','delay')])

# the plan
def covers(total, window, keep, known):
    done, plan = known, L.windows(total, window, keep, known)
    for i,(b,n) in enumerate(plan):
        assert 0 <= b < n <= window and b <= done # It moves on, fits, and begins with what is there
        assert b == keep or i==0 and b==min(done, window) # Only the first window may begin with another piece of the past
        if i<len(plan)-1: assert n==window # No window is left half empty
        done += n-b
    assert done == max(total, known)
    return plan

if st is not None:
    @settings(max_examples=300, deadline=None)
    @given(st.integers(2, 400).flatmap(lambda w: st.tuples(st.integers(0, 3000), st.just(w), st.integers(1, w-1), st.integers(0, 1500))))
    def test_plan_covers_exactly(case): covers(*case)

@pytest.mark.parametrize('seed', range(100))
def test_plan_covers_in_random_cases(seed):
    r = random.Random(seed); w = r.randint(2, 300)
    covers(r.randint(0, 2000), w, r.randint(1, w-1), r.randint(0, 900))

def test_plan_of_known_cases():
    assert L.windows(1500, 300, 200) == [(0,300)]+[(200,300)]*12
    assert len(L.windows(3000, 300, 200)) == 28
    assert L.windows(300, 300, 200) == [(0,300)] and L.windows(1, 300, 200) == [(0,1)]
    assert L.windows(301, 300, 299, 300) == [(299,300)]
    assert L.windows(350, 300, 200, known=299) == [(299,300), (200,250)]

@pytest.mark.parametrize('keep', [0, -1, 12, 13, 1.5, float('nan'), float('inf')])
def test_a_tail_that_cannot_be(keep):
    m = build('b', 'delay')
    with pytest.raises(SoundlmError, match='1 to 11'): L.windows(50, 12, keep)
    with pytest.raises(SoundlmError, match='1 to 11'): L.long_music(m, ['a'], .1, keep=keep) # Also where one window is enough

# what is written
@each
def test_first_window_is_the_plain_music(kind, layout):
    m = build(kind, layout)
    codes = L.extend(m, 40, *text(), own, seed=5)
    assert codes.shape == (2,4,40) and codes.min()>=0 and codes.max()<24
    assert torch.equal(codes[...,:12], m.write(12, *text(), own, 5))
    for s in (.04, .2, .24): assert torch.equal(L.long_music(m, ['one','three'], s, seed=5), m.music(['one','three'], s, seed=5))

@each
def test_later_windows_read_the_tail(kind, layout):
    "Each is what `write` gives for the last frames before it, with a seed that no other window has"
    m, seeds, tails = build(kind, layout), [], []
    plain = m.write
    m.write = lambda n, cond, mask, sampler, seed, begin: (seeds.append(tuple(seed)), tails.append(begin), plain(n, cond, mask, sampler, seed, begin))[-1]
    codes = L.extend(m, 40, *text(), own, seed=5, keep=5)
    assert tails[0] is None and len(seeds) == 5 == len({s[0] for s in seeds}) and len({o for s in seeds for o in s}) == 10
    done = 12
    for tail,seed in zip(tails[1:], seeds[1:]):
        assert torch.equal(tail, codes[...,done-5:done])
        n = min(12, 5+40-done)
        assert torch.equal(plain(n, *text(), own, list(seed), tail)[...,5:], codes[...,done:done+n-5]); done += n-5
    assert done == 40

@each
@pytest.mark.parametrize('t', [1, 7, 12, 30])
def test_extend_keeps_what_it_begins_with(kind, layout, t):
    m, begin = build(kind, layout), some(2, t)
    codes = L.extend(m, 35, *text(), own, begin=begin)
    assert codes.shape == (2,4,35) and torch.equal(codes[...,:t], begin)

@each
def test_deterministic_and_the_same_in_any_batch(kind, layout):
    m, begin = build(kind, layout), some(3, 4)
    cond, mask = text(3)
    whole = L.extend(m, 30, cond, mask, own, seed=8, begin=begin)
    assert torch.equal(whole, L.extend(m, 30, cond, mask, own, seed=8, begin=begin))
    for i in range(3): assert torch.equal(whole[i:i+1], L.extend(m, 30, cond[i:i+1], mask[i:i+1], own, seed=8+i, begin=begin[i:i+1]))
    assert torch.equal(whole, L.extend(m, 30, cond, mask, own, seed=[8,9,10], begin=begin))
    assert not torch.equal(whole, L.extend(m, 30, cond, mask, own, seed=9, begin=begin))

def test_progress():
    said = []
    L.extend(build('b', 'delay'), 30, *text(), own, keep=4, on_step=lambda n, codes: said.append((n, codes.shape[-1])))
    assert said == [(12,12), (20,20), (28,28), (30,30)]

def test_an_audio_prompt_is_heard_in_every_window():
    m, style = build('b', 'delay'), some(1, 9)
    spoken = []
    plain = m.write
    m.write = lambda n, cond, mask, sampler, *a: (spoken.append((cond.shape[1], sampler.rows)), plain(n, cond, mask, sampler, *a))[-1]
    L.long_music(m, ['a','b'], .6, style=style)
    assert spoken == [(48+9, 3)]*len(spoken) and len(spoken) > 1
    with pytest.raises(SoundlmError, match='audio prompt'): L.long_music(build('a', 'flat'), ['a'], .6, style=style)

@each
def test_long_music(kind, layout):
    m = build(kind, layout)
    wav = L.long_music(m, ['a','bb'], .7, begin=some(1, 15))
    assert wav.shape == (2,1,140) and torch.isfinite(wav).all()
    codes = L.extend(m, 35, *m.conditions(['a','bb']), replace(m.sampler, style_guidance=None), 0, some(1, 15).expand(2,-1,-1))
    assert torch.equal(wav, m.sound(codes)) # Decoded in one go: there is no join in the sound

@pytest.mark.parametrize('seconds', [0, -1, float('nan'), float('inf'), -float('inf')])
def test_seconds_that_cannot_be(seconds):
    with pytest.raises(SoundlmError, match='more than 0'): L.long_music(build('b', 'delay'), ['a'], seconds)

@pytest.mark.parametrize('t', [20, 21, 100])
def test_more_to_begin_with_than_asked_for(t):
    m = build('b', 'delay')
    with pytest.raises(SoundlmError, match='fewer than the 20'): L.extend(m, 20, *text(), own, begin=some(2, t))
    with pytest.raises(SoundlmError, match='fewer than the 20'): L.long_music(m, ['a'], .4, begin=some(1, t))

# memory
def held(cache): return sum(o.nbytes for o in (cache.k, cache.v, cache.see, *(x for kv in cache.cross.values() for x in kv)))

@each
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_cache_bytes_is_the_real_size(kind, layout, dtype):
    m = build(kind, layout).to(dtype)
    for rows,conditions in ((1,1), (1,2), (3,2)):
        cond, mask = text(rows*conditions)
        cache = m.new_cache(len(cond), m.prefix_slots(cond)+1+m.layout.length(12))
        m.prefill(torch.zeros(len(cond), m.layout.streams, 1, dtype=torch.long), cond.to(dtype), mask, cache)
        assert held(cache) == L.cache_bytes(m, rows, conditions, 5 if kind=='b' else 0)

def test_cache_bytes_with_an_audio_prompt():
    m = build('b', 'delay')
    cond, mask = m.fuse(*text(3), some(3, 9))
    cache = m.new_cache(3, 1+m.layout.length(12))
    m.prefill(torch.zeros(3, 4, 1, dtype=torch.long), cond, mask, cache)
    assert held(cache) == L.cache_bytes(m, 1, 3, 48+9)

def peak(m, frames):
    "(windows, most bytes of live caches, most caches alive) while a piece is written"
    plain, alive, seen = m.trunk.new_cache, weakref.WeakSet(), []
    def spy(*a):
        c = plain(*a); alive.add(c)
        seen.append((sum(o.nbytes for x in alive for o in (x.k, x.v, x.see)), len(alive)))
        return c
    object.__setattr__(m.trunk, 'new_cache', spy)
    try: L.extend(m, frames, *text(1), own)
    finally: del m.trunk.new_cache
    return len(seen), max(b for b,_ in seen), max(n for _,n in seen)

@pytest.mark.parametrize('kind,layout', [('b','delay'), ('a','delay')])
def test_half_a_minute_takes_the_memory_of_six_seconds(kind, layout):
    m = build(kind, layout, 300)
    short, long = peak(m, 300), peak(m, 1500)
    assert (short[0], long[0]) == (1, 13)
    assert short[1:] == long[1:] == (L.cache_bytes(m), 1)

# drift
class Ear:
    "Hears the style in the sign of the mean"
    def predict(self, wav, rate): return dict(style=('up' if wav.mean()>0 else 'down', 1.))

def test_drift_rows():
    a, b = torch.full((1,1050), .5), torch.full((1,1050), .1)
    b[:,400:] = -.01
    rows = L.drift([a,b], ['up','up'], Ear(), 100, window=2.)
    assert [(o['from'], o['to']) for o in rows] == [(0,2), (2,4), (4,6), (6,8), (8,10)] # What is left over is too short for a row
    assert [o['style'] for o in rows] == [1,1,.5,.5,.5]
    db = lambda x: 20*math.log10(x)
    assert rows[0]['loudness'] == pytest.approx((db(.5)+db(.1))/2) and rows[4]['loudness'] == pytest.approx((db(.5)+db(.01))/2)
    for o in rows:
        for k in ('style','loudness'): assert o[f'{k}_low'] <= o[k] <= o[f'{k}_high']

def test_drift_of_silence_is_finite():
    assert L.drift([torch.zeros(1,100)], ['up'], Ear(), 100, window=1.)[0]['loudness'] == pytest.approx(-120)

@pytest.mark.parametrize('wavs,styles,window', [([100,101],['a','a'],1.), ([100,100],['a'],1.), ([100],['a'],1.5), ([],[],1.), ([100],['a'],0), ([100],['a'],-1.), ([0],['a'],1.)])
def test_drift_wants_pieces_of_one_length(wavs, styles, window):
    with pytest.raises(SoundlmError, match='drift got'): L.drift([torch.zeros(1,n) for n in wavs], styles, Ear(), 100, window)
