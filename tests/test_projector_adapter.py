"Adapters: sizes, padding, precision and widths that do not fit; and the rule that aligns two tokenizers"
from types import SimpleNamespace as Text
import pytest, torch
from hypothesis import given, settings, strategies as st
from soundlm import hub
from soundlm.core import SoundlmError
from soundlm.projector import adapter as A
from soundlm.projector.decoder import OmniDecoder

kinds = list(A.projectors)
close = lambda a, b, eps=1e-5: torch.testing.assert_close(a, b, atol=eps, rtol=0)
def tokens(n, width=3): return [(width*i, width*(i + 1)) for i in range(n)]
def text(n, d=24, layers=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Text(states=torch.randn(*((n, d) if layers is None else (n, layers + 1, d)), generator=g), spans=tokens(n))
def own(m, d=40, seed=1): return torch.randn(m, d, generator=torch.Generator().manual_seed(seed))*.07, tokens(m, 2)
def make(kind, d_in=24, d_out=40, **kw):
    torch.manual_seed(0)
    return A.make_projector(kind, d_in, d_out, **kw).eval()
def batch(layers=None): return A.gather([text(7, layers=layers), text(2, layers=layers, seed=3), text(5, layers=layers, seed=4)], [own(4), own(9, seed=5), own(1, seed=6)])

@st.composite
def cuts(draw, most=40):
    "Tokens that cover a text of the same length"
    length = draw(st.integers(1, most))
    def one():
        at = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=12))})
        return list(zip(at[:-1], at[1:]))
    return one(), one()

def by_hand(a, b):
    "The rule, character by character"
    rows = [[len(set(range(*x)) & set(range(*y))) for y in b] for x in a]
    return torch.tensor([[v/sum(r) for v in r] for r in rows])

def test_the_missions_numbers():
    p = A.AudioProjector(4096, 2048)
    assert A.count(p) == A.count(p, learning=True) == 8_394_752
    assert [type(m).__name__ for m in p.children()] == ['Linear', 'LayerNorm', 'GELU']
    assert p(torch.randn(2, 3, 4096)).shape == (2, 3, 2048)
    p.linear.requires_grad_(False)
    assert A.count(p, learning=True) == 4096

@settings(max_examples=200, deadline=None)
@given(cuts())
def test_overlap_shares_characters(pair):
    a, b = pair
    got = A.overlap(a, b)
    close(got.sum(-1), torch.ones(len(a)))
    close(got, by_hand(a, b))
    close(A.overlap(a, a), torch.eye(len(a)))
    close(A.overlap(A.shares(a), A.shares(b)), got)

@settings(max_examples=100, deadline=None)
@given(cuts(), st.integers(0, 5), st.integers(0, 5))
def test_overlap_pays_no_attention_to_padding(pair, n, m):
    (a, b), pad = pair, lambda o, k: torch.tensor([*o, *[(0, 0)]*k])
    mask = torch.arange(len(b) + m) < len(b)
    got = A.overlap(pad(a, n), pad(b, m), mask)
    close(got[:len(a), :len(b)], A.overlap(a, b))
    assert not got[:, len(b):].any()
    close(got.sum(-1), torch.ones(len(a) + n))

@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=8), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=8))
def test_rows_sum_to_one_for_any_spans(a, b):
    a, b = ([(s, s + n) for s, n in o] for o in (a, b))
    got = A.overlap(a, b)
    assert (got >= 0).all()
    close(got.sum(-1), torch.ones(len(a)))

def test_a_token_that_covers_two_takes_both_by_their_share():
    close(A.overlap([(0, 4)], [(0, 1), (1, 4)]), torch.tensor([[.25, .75]]))
    close(A.overlap([(2, 6)], [(0, 3), (3, 9)]), torch.tensor([[.25, .75]]))

def test_a_token_without_characters_takes_its_place():
    "Byte-level tokenizers cut one character into several tokens, of which only one has it"
    close(A.overlap([(0, 3), (3, 3), (3, 5)], [(0, 3), (3, 3), (3, 5)]), torch.eye(3))
    assert A.overlap([(5, 5)], [(0, 4), (4, 9)]).tolist() == [[0, 1]]
    assert A.overlap([(9, 9)], [(0, 8), (8, 10), (10, 11)]).tolist() == [[0, 1, 0]]
    assert A.overlap([(8, 9)], [(0, 3), (4, 7)]).tolist() == [[0, 1]] # beyond all others: the nearest

def test_align_is_a_mean_of_what_is_real():
    v = torch.tensor([[[1., 0], [0, 1], [float('nan'), 9]]])
    got = A.align(v, torch.tensor([[[0., .5], [.5, 1], [0, 0]]]), torch.tensor([[True, True, False]]), torch.tensor([[[0., 1], [0, .5]]]))
    close(got, torch.tensor([[[.5, .5], [1, 0]]]))

@pytest.mark.parametrize('layer', [-1, 1, 'mix'])
@pytest.mark.parametrize('kind', kinds)
def test_padding_changes_nothing(kind, layer):
    p, L = make(kind, layer=layer, n_layers=3), None if layer == -1 else 3
    texts, owns = [text(7, layers=L), text(2, layers=L, seed=3)], [own(4), own(9, seed=5)]
    v, mask = p(A.gather(texts, owns))
    assert v.shape[:2] == mask.shape and not v[~mask].any()
    for i in range(2):
        alone, m = p(A.gather(texts[i:i + 1], owns[i:i + 1]))
        assert m.all() and int(mask[i].sum()) == alone.shape[1]
        close(v[i][mask[i]], alone[0])

@pytest.mark.parametrize('kind', kinds)
def test_padding_may_hold_anything(kind):
    p, b = make(kind), batch()
    want = p(b)[0]
    dirty = A.replace(b, states=b.states.masked_fill(~b.mask[..., None], float('nan')), spans=b.spans.masked_fill(~b.mask[..., None], .4),
        own=b.own.masked_fill(~b.own_mask[..., None], float('nan')), own_spans=b.own_spans.masked_fill(~b.own_mask[..., None], .6))
    close(p(dirty)[0], want)

@pytest.mark.parametrize('kind', kinds)
def test_no_gradient_comes_from_padding_or_is_lost(kind):
    p, b = make(kind, layer='mix', n_layers=2).train(), batch(layers=2)
    dirty = A.replace(b, states=b.states.masked_fill(~b.mask[..., None, None], float('nan')))
    v, mask = p(dirty)
    (v[mask] - torch.randn(40, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    for n, w in p.named_parameters():
        assert w.grad is not None and torch.isfinite(w.grad).all() and w.grad.abs().max() > 1e-6, n

@pytest.mark.parametrize('kind', kinds)
def test_half_precision(kind):
    p, b = make(kind), batch()
    want = p(b)[0]
    got = make(kind).to(torch.bfloat16)(A.replace(b, states=b.states.to(torch.float16)))
    assert got[0].dtype == torch.bfloat16 and torch.equal(got[1], p(b)[1])
    close(got[0].float(), want, .1*float(want.detach().abs().max()))

@pytest.mark.parametrize('kind', kinds)
def test_its_config_makes_it_again(kind):
    p = make(kind, layer='mix', n_layers=3, scale=.2)
    q = A.make_projector(**p.config)
    q.load_state_dict(p.state_dict())
    b = batch(layers=3)
    assert torch.equal(p(b)[0], q.eval()(b)[0]) and q.config == p.config

@pytest.mark.parametrize('kind', kinds)
def test_any_width(kind):
    for d_in, d_out in ((1, 4), (7, 40), (24, 6)):
        b = A.gather([text(3, d_in), text(1, d_in)], [own(2, d_out), own(5, d_out)])
        v, mask = make(kind, d_in, d_out)(b)
        assert v.shape[-1] == d_out and torch.isfinite(v).all()

@pytest.mark.parametrize('kind', kinds)
def test_widths_that_do_not_fit(kind):
    p = make(kind)
    with pytest.raises(SoundlmError, match='states are 128 wide, this projector was made for 24: '): p(A.gather([text(3, 128)], [own(2)]))
    with pytest.raises(SoundlmError, match='reads layer -1|of one layer|was made for') as e: make(kind, layer='mix', n_layers=3)(batch())
    assert "layer='all'" in str(e.value)
    with pytest.raises(SoundlmError, match='3 layers, this mix was made for 6'): make(kind, layer='mix', n_layers=5)(batch(layers=2))
    with pytest.raises(SoundlmError, match='reads layer 3'): make(kind, layer=3)(batch(layers=2))

def test_what_looks_at_the_decoder_needs_it():
    alone = A.gather([text(3)])
    assert [k for k, c in A.projectors.items() if c.needs_own is True] == ['gated', 'resampler']
    for kind in ('gated', 'resampler'):
        with pytest.raises(SoundlmError, match='text_vectors'): make(kind)(alone)
        with pytest.raises(SoundlmError): make(kind)(torch.zeros(1, 2, 24))
    with pytest.raises(SoundlmError, match="decoder's embeddings are 9 wide, this projector was made for 40"): make('gated')(A.gather([text(3)], [own(2, 9)]))
    make('resampler')(A.gather([text(3)], [own(2, 9)])) # which has only places to look at, so any width will do

def test_a_resampler_sees_places_and_no_embeddings():
    p, b = make('resampler'), batch()
    assert torch.equal(p(b)[0], p(A.replace(b, own=torch.randn_like(b.own)))[0])
    assert not torch.allclose(p(b)[0], p(A.replace(b, own_spans=b.own_spans*.5))[0])

def test_the_gate_mixes_both_and_nothing_else():
    p, b = make('gated', scale=.07), batch()
    emb = A.align(b.own, b.own_spans, b.own_mask, b.spans)
    for bias, want in ((-100., emb), (100., p.project(b.states))):
        with torch.no_grad(): p.gate.weight.zero_(), p.gate.bias.fill_(bias)
        close(p(b)[0][b.mask], want[b.mask])

def test_a_mix_begins_with_equal_shares():
    m, s = A.LayerMix(3), text(5, layers=3).states[None]
    close(m.shares(), torch.full((4,), .25))
    close(m(s), torch.nn.functional.layer_norm(s, s.shape[-1:]).mean(2))
    close(m(s*torch.tensor([1., 10, 100, 1000])[:, None]), m(s), 1e-3) # a loud layer counts no more than others

@pytest.mark.parametrize('activation', list(A.activations))
def test_vectors_begin_at_the_size_that_was_asked_for(activation):
    torch.manual_seed(0)
    for size in (.05, .3):
        p = A.AudioProjector(64, 400, activation=activation, scale=A.gain(size, activation))
        assert float(p(torch.randn(4, 50, 64)).detach().square().mean().sqrt()) == pytest.approx(size, rel=.05)

@pytest.mark.parametrize('f,words', [
    (lambda: A.make_projector('gate'), "'gate', expected one of linear, mlp, gated, resampler. Did you mean gated"),
    (lambda: A.make_projector('linear', width=3), 'width for a linear projector'),
    (lambda: A.make_projector('linear', 0, 8), 'widths 0 and 8'),
    (lambda: A.make_projector('linear', 8, 8, layer='mix'), 'without n_layers'),
    (lambda: A.make_projector('linear', 8, 8, layer='last'), "layer 'last'"),
    (lambda: A.make_projector('linear', 8, 8, layer=4, n_layers=3), 'expected -1 to 3'),
    (lambda: A.make_projector('linear', 8, 8, activation='relu'), "'relu', expected one of gelu"),
    (lambda: A.make_projector('resampler', 8, 8, width=10, n_heads=4), 'width 10 for 4 heads'),
    (lambda: A.gain(2., 'tanh'), 'expected one between 0 and 0.999'),
    (lambda: A.gather([]), 'Got no text'),
    (lambda: A.gather([text(3), text(0)]), 'without tokens'),
    (lambda: A.gather([text(3)], [own(2), own(2)]), "2 of the decoder's texts for 1")])
def test_wrong_words(f, words):
    with pytest.raises(SoundlmError) as e: f()
    assert words in str(e.value)

@pytest.mark.parametrize('kind', kinds)
def test_it_learns_a_linear_map(kind):
    torch.manual_seed(0)
    true = torch.randn(24, 40)*.2
    texts = [text(6, seed=i) for i in range(16)]
    b = A.gather(texts, [(t.states@true + .5*torch.randn(6, 40), t.spans) for t in texts])
    p = make(kind, activation='none') if kind in ('linear', 'gated') else make(kind)
    want = torch.nn.functional.layer_norm(b.states@true, (40,))
    opt = torch.optim.AdamW(p.parameters(), 1e-2, weight_decay=0)
    for _ in range(300 if kind == 'resampler' else 200):
        loss = (p(b)[0] - want).square().mean()
        opt.zero_grad(); loss.backward(); opt.step()
    assert loss < .05

def test_two_real_tokenizers():
    "bpe-tiny's tokens against characters: what the decoder says where its tokens lie is what the rule needs"
    dec = OmniDecoder(hub.load('omni'))
    words = 'three seven one and nothing else'
    vectors, spans = dec.text_vectors(words)
    letters = [(i, i + 1) for i in range(len(words))]
    for i, row in enumerate(A.overlap(letters, spans)):
        at = int(row.argmax())
        assert row[at] == 1 and (words[i] == ' ' or spans[at][0] <= i < spans[at][1])
    b = A.gather([Text(states=torch.zeros(len(spans), 8), spans=spans)], [(vectors, spans)])
    close(A.align(b.own, b.own_spans, b.own_mask, b.spans)[0], vectors)
    assert b.own.shape[-1] == dec.dim
