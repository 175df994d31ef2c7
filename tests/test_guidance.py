"Guidance: one batch is two passes, and the measures say what they should"
import itertools, random
import numpy as np, pytest, torch
from soundlm.core import SoundlmError
from soundlm.music import guidance as G
from soundlm.music.baseline import MusicA, music_a_tiny
from soundlm.music.fusion import MusicB, music_b_tiny
from soundlm.sample import Sampler, generate, guide

small = dict(dim=32, n_heads=2, n_layers=2, text_dim=16, codebook_size=24, max_frames=20)

def music_b(**kw):
    "A random Model B whose conditions matter"
    torch.manual_seed(0)
    m = MusicB(music_b_tiny(**(small|dict(hidden=48, text_len=6, prompt_frames=10)|kw))).eval()
    for p in m.parameters(): torch.nn.init.normal_(p, std=.2)
    return m.requires_grad_(False)

def music_a(**kw):
    torch.manual_seed(0)
    m = MusicA(music_a_tiny(**(small|dict(text_len=6)|kw))).eval()
    for p in m.parameters(): torch.nn.init.normal_(p, std=.2)
    return m.requires_grad_(False)

def text(b=2, n=5):
    g = torch.Generator().manual_seed(1)
    return torch.randn(b, n, 16, generator=g), torch.arange(n)<torch.tensor([[n],[n-2]]*b)[:b]

def codes(b=2, t=6, seed=2): return torch.randint(24, (b,4,t), generator=torch.Generator().manual_seed(seed))

def batched(m, codes, cond, mask, w, ws=None):
    "Logits as the decode loop gets them: all rows in one batch over one cache, step by step"
    conds = [(cond,mask)] + ([m.style_cond(cond, mask)] if ws is not None else []) + [m.null_cond(cond, mask)]
    c, k = (torch.cat(o) for o in zip(*conds))
    seq = m.layout.build(codes).repeat(len(conds),1,1)
    cache = m.new_cache(len(c), m.prefix_slots(c)+1+seq.shape[-1])
    got = [m.prefill(seq[...,:0], c, k, cache)] + [m.step(seq[...,j], torch.tensor([j]), cache) for j in range(seq.shape[-1]-1)]
    return torch.stack([guide(o, w, ws) for o in got], 1)

def legal(m, x): return x[...,:24] if m.layout.streams>1 else x # beyond are places that no code has

# one batch is two passes, or three
@pytest.mark.parametrize('layout', ['flat','delay'])
@pytest.mark.parametrize('make', [music_a, music_b])
@pytest.mark.parametrize('w', [0., 1., 3.])
def test_batch_is_two_passes(make, layout, w):
    m = make(layout=layout)
    torch.testing.assert_close(legal(m, batched(m, codes(), *text(), w)), legal(m, G.guided_apart(m, codes(), *text(), w)), atol=1e-3, rtol=1e-4)

@pytest.mark.parametrize('layout', ['flat','delay'])
@pytest.mark.parametrize('ws,w', [(0.,0.), (1.,1.), (1.5,3.), (3.,.5)])
def test_batch_is_three_passes(layout, ws, w):
    m = music_b(layout=layout)
    two = m.fuse(*text(), codes(t=7, seed=3), torch.tensor([True,False]))
    torch.testing.assert_close(legal(m, batched(m, codes(), *two, w, ws)), legal(m, G.guided_apart(m, codes(), *two, w, ws)), atol=1e-3, rtol=1e-4)

def test_weights_weigh():
    "Zero, one and equal weights have plain meanings, and each condition changes something"
    m = music_b()
    two, c = m.fuse(*text(), codes(t=7, seed=3)), codes()
    run = lambda cond, mask: m.logits(m.hidden(c, cond, mask))
    both, style, none = run(*two), run(*m.style_cond(*two)), run(*m.null_cond(*two))
    for a,b in itertools.combinations((both, style, none), 2): assert (a-b)[...,:24].abs().max()>1e-2
    eq = lambda a, b: torch.testing.assert_close(legal(m, a), legal(m, b), atol=1e-4, rtol=1e-4)
    eq(G.guided_apart(m, c, *two, 0.), none); eq(G.guided_apart(m, c, *two, 1.), both)
    eq(G.guided_apart(m, c, *two, 0., 1.), style); eq(G.guided_apart(m, c, *two, 1., 1.), both)
    eq(G.guided_apart(m, c, *two, 3., 3.), G.guided_apart(m, c, *two, 3.))

def test_without_a_clip_style_is_nothing():
    m = music_b()
    a, b = G.guided_apart(m, codes(), *text(), 3., 1.5), G.guided_apart(m, codes(), *text(), 3.)
    torch.testing.assert_close(legal(m, a), legal(m, b), atol=1e-5, rtol=1e-5)
    alone = m.fuse(*text(), codes(t=7, seed=3), torch.tensor([False,False])) # A prompt that no row has
    torch.testing.assert_close(legal(m, G.guided_apart(m, codes(), *alone, 3.)), legal(m, b), atol=1e-4, rtol=1e-4)

@pytest.mark.parametrize('layout', ['flat','delay'])
def test_greedy_music_follows_the_two_passes(layout):
    "What the loop writes at temperature 0 is the argmax of the plain version, position for position"
    m = music_b(layout=layout)
    two = m.fuse(*text(), codes(t=7, seed=3))
    seq = generate(m, m.layout, 5, *two, Sampler(temperature=0, guidance=2., style_guidance=1.5), seeds=0)
    logits = G.guided_apart(m, m.layout.revert(seq), *two, 2., 1.5)
    free = m.layout.template(5)
    for s,j in (free<0).nonzero().tolist():
        allowed = m.layout.slot_mask(j)
        best = logits[:,j,s].masked_fill(~allowed, -torch.inf).argmax(-1)
        assert torch.equal(best, seq[:,s,j]), (s, j)

@pytest.mark.parametrize('w', [-1., -1e-9, float('nan'), float('inf'), 1e9])
def test_weights_that_make_no_sense(w):
    m = music_b()
    with pytest.raises(SoundlmError, match='guidance'): G.guided_apart(m, codes(), *text(), w)
    with pytest.raises(SoundlmError, match='style_guidance'): G.guided_apart(m, codes(), *text(), 1., w)
    with pytest.raises(SoundlmError, match='guidance'): Sampler(guidance=w)
    with pytest.raises(SoundlmError, match='style_guidance'): Sampler(style_guidance=w)

# measures
class Angles:
    "A probe that hears the direction of the first two samples"
    def embed(self, wav, rate): return torch.nn.functional.normalize(wav[0,:2], dim=0)
def wav(*xs): return torch.tensor([list(map(float, xs))])

def test_diversity():
    d = lambda groups: G.diversity(groups, Angles(), 32000)
    assert d([[wav(1,0), wav(2,0)]]) == pytest.approx((0,0,0))
    assert d([[wav(1,0), wav(0,1)]])[0] == pytest.approx(1)
    assert d([[wav(1,0), wav(-1,0)], [wav(0,1), wav(0,3)]])[0] == pytest.approx(1)
    three = [wav(1,0), wav(0,1), wav(-1,0)] # Distances 1, 1, 2
    assert d([three])[0] == pytest.approx(4/3)
    assert d([three])[0] == pytest.approx(d([three[::-1]])[0])

@pytest.mark.parametrize('groups', [[[wav(1,0)]], [[wav(1,0), wav(0,1)], [wav(1,0)]], [[]], []])
def test_diversity_needs_two(groups):
    with pytest.raises(SoundlmError): G.diversity(groups, Angles(), 32000)

def brute(made, prompt):
    "Every pair of places, every length"
    a, b = [tuple(o) for o in made.T.tolist()], [tuple(o) for o in prompt.T.tolist()]
    return max((n for i in range(len(a)) for j in range(len(b)) for n in range(1, min(len(a)-i, len(b)-j)+1) if a[i:i+n]==b[j:j+n]), default=0)

@pytest.mark.parametrize('seed', range(60))
def test_longest_copy_is_the_brute_one(seed):
    r = random.Random(seed); g = torch.Generator().manual_seed(seed)
    k, t, p, K = r.randint(1, 3), r.randint(0, 14), r.randint(0, 10), r.choice([1, 2, 3])
    made, prompt = torch.randint(K, (k,t), generator=g), torch.randint(K, (k,p), generator=g)
    assert G.longest_copy(made, prompt) == brute(made, prompt) == G.longest_copy(prompt, made)

def test_longest_copy_wants_codes():
    x = torch.zeros(4, 5, dtype=torch.long)
    assert G.longest_copy(x, x) == 5
    for a,b in ((x, x[:1]), (x[:1], x), (x[None], x), (x, x[0])):
        with pytest.raises(SoundlmError, match='longest_copy'): G.longest_copy(a, b)
    broken = x.clone(); broken[2,2] = 1 # One code of one frame
    assert G.longest_copy(broken, x) == 2

def row(style, heard, bpm=100, bpm_heard=100., family='keys', id='a'): return dict(id=id, style=style, style_heard=heard, tempo=bpm, tempo_heard=bpm_heard, family=family, family_heard='keys')

def test_right():
    assert G.right(row('jazz','jazz'), 'style') and not G.right(row('jazz','disco'), 'style')
    for bpm,ok in ((100,True), (107.9,True), (108.1,False), (50,True), (200,True), (46,True), (45,False), (0,False), (150,False)):
        assert G.right(row('a','a', 100, bpm), 'tempo') is ok, bpm
    assert G.right(row('jazz','disco'), 'style', row('disco','x'))

def test_adherence_and_margin():
    rows, base = [row('a','a'), row('b','b'), row('c','x'), row('d','d')], [row('a','a'), row('b','x'), row('c','x'), row('d','x')]
    a = G.adherence(rows)
    assert (a['n'], a['style'], a['family'], a['tempo']) == (4, .75, 1., 1.)
    assert a['style_low'] < .75 < a['style_high'] <= 1
    m = G.margin(rows, base, 'style')
    assert m[0] == .5 and 0 <= m[1] <= .5 <= m[2] <= 1
    assert G.margin(base, rows, 'style')[0] == -.5
    for wrong in (base[:3], base+base[:1], [row('a','a', id='b')]*4, []):
        with pytest.raises(SoundlmError, match='same ones'): G.margin(rows, wrong, 'style')
    for f in (lambda: G.adherence([]), lambda: G.margin([], [], 'style')):
        with pytest.raises(SoundlmError): f()

def test_shuffled_and_style_table():
    rows = [row('a','a'), row('b','b'), row('c','a', 200, 60.), row('a','c', 61, 61., family='brass')]
    assert G.shuffled(rows, 'style') == pytest.approx([1/3, 0, 2/3, 1/3])
    assert G.shuffled(rows, 'family') == pytest.approx([2/3, 2/3, 2/3, 1.])
    for r,c in zip(rows, G.shuffled(rows, 'tempo')): # By hand: all other rows' wishes against what was heard in this one
        assert c == pytest.approx(np.mean([G.right(r, 'tempo', o) for o in rows if o is not r]))
    table = {o['attribute']: o for o in G.style_table(rows)}
    assert list(table) == ['tempo','family','style']
    s = table['style']
    assert (s['n'], s['match'], s['shuffled']) == (4, .5, pytest.approx(1/3))
    assert s['more'] == pytest.approx(.5-1/3) and s['more_low'] <= s['more'] <= s['more_high']
    assert table['tempo']['match'] == .75 and table['family']['match'] == .75

def test_chance_needs_others():
    for f in (lambda: G.shuffled([row('a','a')], 'style'), lambda: G.style_table([]), lambda: G.style_table([row('a','a')])):
        with pytest.raises(SoundlmError): f()

# making clips
class Echo:
    "A model that answers with its seed, its prompt's length and its audio prompt's first code"
    def __init__(self): self.calls = []
    def music(self, prompts, seconds, seed=0, style=None, sampler=None):
        self.calls.append((len(prompts), sampler))
        tone = [0]*len(prompts) if style is None else style[:,0,0].tolist()
        return torch.tensor([[[float(seed+i), float(len(p or '')), float(s)]] for i,(p,s) in enumerate(zip(prompts, tone, strict=True))])

@pytest.mark.parametrize('batch', [1, 2, 5, 16])
def test_perform_keeps_order_seeds_and_prompts(batch):
    prompts = ['a', 'bb', None, 'dddd', 'eeeee']
    style = torch.arange(5)[:,None,None].expand(5,4,3)
    made, took = G.perform(Echo(), prompts, 1., style=style, batch=batch, seed=7)
    assert [w[0].tolist() for w in made] == [[7+i, len(p or ''), i] for i,p in enumerate(prompts)] and took >= 0
    made, _ = G.perform(Echo(), prompts, 1., style=style[3:4], batch=batch)
    assert [w[0,2].item() for w in made] == [3]*5

def test_perform_leaves_the_sampler_to_the_model():
    m, s = Echo(), Sampler(guidance=2.)
    G.perform(m, ['a']*3, 1., batch=2); G.perform(m, ['a'], 1., sampler=s)
    assert m.calls == [(2,None), (1,None), (1,s)]

def test_sweep_compares_like_with_like(monkeypatch):
    "Same prompts, same seeds at each weight; a second seed only for the first few; other settings kept"
    said = []
    def fake(model, prompts, seconds, sampler=None, seed=0, **kw):
        said.append((tuple(prompts), seed, sampler))
        return [wav(1, i+seed) for i in range(len(prompts))], .5
    monkeypatch.setattr(G, 'perform', fake)
    monkeypatch.setattr(G, 'listen', lambda m, wavs, clips, probe: [row('a','a') for _ in clips])
    from types import SimpleNamespace as NS
    clips, m = [NS(caption=c) for c in 'xyz'], NS(codec=NS(sample_rate=32000))
    res = G.sweep(m, clips, Angles(), weights=(1.,4.), few=2, seconds=2., top_k=7)
    assert list(res) == [1.,4.] and [o['guidance'] for o in res.values()] == [1.,4.]
    assert [(p,s) for p,s,_ in said] == [(('x','y','z'),0), (('x','y'),10_000)]*2
    assert [(s.guidance, s.top_k, s.temperature) for *_,s in said] == [(1.,7,.9)]*2+[(4.,7,.9)]*2
    assert res[1.]['n'] == 3 and res[1.]['seconds_per_second'] == pytest.approx(12.) and 0 < res[4.]['diversity'] <= 2

def test_listen_wants_a_clip_for_each_sound():
    with pytest.raises(SoundlmError, match='one for each'): G.listen(None, [wav(0)], [], None)
