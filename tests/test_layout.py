"Properties of the layouts, over shapes and codes that hypothesis makes up"
import pytest, torch
from hypothesis import given, settings, strategies as st
from soundlm.core import SoundlmError, TokenError
from soundlm.layout import Delay, Flat, Frame, Layout, check_codes, depth_first, layout
from soundlm.sample import Sampler, sample

some = settings(max_examples=60, deadline=None)
kinds = st.sampled_from(['flat','delay','frame','slot'])
shapes = dict(kind=kinds, b=st.integers(1,3), k=st.integers(1,4), t=st.integers(1,9), K=st.integers(1,50), seed=st.integers(0,2**31))

def make(kind, k, K, end=False): return Frame(k, K, 'slot', end) if kind=='slot' else layout(kind, k, K, end=end)
def make_codes(lay, b, t, seed):
    g = torch.Generator().manual_seed(seed)
    if isinstance(lay, Frame): return [torch.randint(lay.K, (b,t*2**i), generator=g) for i in range(lay.k)]
    return torch.randint(lay.K, (b,lay.k,t), generator=g)
def same(a, b): return all(torch.equal(x,y) for x,y in zip(a,b, strict=True)) if isinstance(a,list) else torch.equal(a,b)

@some
@given(**shapes, end=st.booleans())
def test_there_and_back(kind, b, k, t, K, seed, end):
    lay = make(kind, k, K, end)
    codes = make_codes(lay, b, t, seed)
    seq = lay.build(codes)
    assert seq.shape==(b, lay.streams, lay.length(t)) and seq.dtype==torch.int64
    assert same(lay.revert(seq), codes)
    assert 0<=int(seq.min()) and int(seq.max())<lay.vocab-end
    assert lay.masks.shape==(lay.period, lay.vocab) and lay.masks.sum(1).tolist()==[K+end]+[K]*(lay.period-1)

@some
@given(**shapes)
def test_end_is_one_more_id(kind, b, k, t, K, seed):
    "Nothing else changes: not what is built, nor the template, nor the other masks"
    a,lay = make(kind, k, K),make(kind, k, K, True)
    codes = make_codes(lay, b, t, seed)
    assert a.end is None and lay.end==lay.vocab-1==a.vocab and lay.end!=lay.pad
    assert lay.masks[:,lay.end].tolist()==[True]+[False]*(lay.period-1) and torch.equal(lay.masks[:,:-1], a.masks)
    assert torch.equal(lay.build(codes), a.build(codes)) and torch.equal(lay.template(t), a.template(t))
    assert 'end' not in a.config and lay.config==a.config|dict(end=True) and layout(**lay.config).config==lay.config

def ended(lay, codes, at):
    "What a run leaves: row `i` is over after `at[i]` frames"
    seq = lay.build(codes)
    for row,n in zip(seq, at):
        for i in range(lay.streams): row[i,n*lay.period+i:] = lay.end
    return seq

@some
@given(kind=kinds, k=st.integers(1,4), K=st.integers(1,50), t=st.integers(1,9), seed=st.integers(0,2**31), at=st.lists(st.integers(0,9), min_size=1, max_size=4))
def test_trim_keeps_the_frames_before_the_end(kind, k, K, t, seed, at):
    lay,at = make(kind, k, K, True),[min(n,t) for n in at]
    codes = make_codes(lay, len(at), t, seed)
    seq = ended(lay, codes, at)
    rows = lay.trim(seq)
    assert [r.shape for r in rows]==[(1, lay.streams, lay.length(n) if n else 0) for n in at]
    for i,(row,n) in enumerate(zip(rows, at)):
        first = [c[i:i+1,:n*2**j] for j,c in enumerate(codes)] if isinstance(lay,Frame) else codes[i:i+1,:,:n]
        if n: assert same(lay.revert(row), first)
    if min(at)<t:
        with pytest.raises(TokenError): lay.revert(seq)

@some
@given(**shapes, end=st.booleans(), cut=st.integers(0,99))
def test_trim_drops_a_frame_that_was_not_finished(kind, b, k, t, K, seed, end, cut):
    lay = make(kind, k, K, end)
    codes = make_codes(lay, b, t, seed)
    seq = lay.build(codes)
    cut = cut%(seq.shape[2]+1)
    n = max(0, cut-k+1) if kind=='delay' else cut//lay.period
    for i,row in enumerate(lay.trim(seq[...,:cut])):
        assert row.shape==(1, lay.streams, lay.length(n) if n else 0)
        if n: assert same(lay.revert(row), [c[i:i+1,:n*2**j] for j,c in enumerate(codes)] if isinstance(lay,Frame) else codes[i:i+1,:,:n])

@pytest.mark.parametrize('k,period', [(3,7),(4,15)])
@pytest.mark.parametrize('offset', ['codebook','slot'])
def test_a_frame_can_end_at_its_first_slot_only(k, period, offset):
    lay = layout('frame', k, 4096, offset=offset, end=True)
    assert lay.vocab==(k if offset=='codebook' else period)*4096+1
    assert [bool(lay.slot_mask(i)[lay.end]) for i in range(2*period)]==([True]+[False]*(period-1))*2
    codes = make_codes(lay, 1, 2, 0)
    for i in range(2*period):
        seq = lay.build(codes)
        seq[...,i] = lay.end
        with pytest.raises(TokenError): lay.revert(seq)

@pytest.mark.parametrize('bad', [torch.zeros(1,4).long(), torch.zeros(1,3,8).long()])
def test_trim_wants_its_streams(bad):
    for lay in (Flat(4,8,end=True), Delay(4,8)):
        with pytest.raises(TokenError): lay.trim(bad)

@some
@given(**shapes)
def test_built_ids_are_legal_or_forced(kind, b, k, t, K, seed):
    "Whatever `build` writes is either what the template forces or what the mask allows"
    lay = make(kind, k, K)
    seq,forced = lay.build(make_codes(lay, b, t, seed)),lay.template(t)
    legal = lay.slot_mask(torch.arange(seq.shape[2]))[None,None].expand(*seq.shape,-1).gather(-1, seq[...,None])[...,0]
    assert bool((legal | (seq==forced)).all())
    assert bool((seq==forced)[:,forced>=0].all())

@some
@given(**shapes, part=st.integers(1,9))
def test_a_prompt_stands_in_the_template(kind, b, k, t, K, seed, part):
    lay = make(kind, k, K)
    codes,part = make_codes(lay, b, t, seed),min(part,t)
    prompt = [c[:,:part*2**i] for i,c in enumerate(codes)] if isinstance(lay,Frame) else codes[...,:part]
    tpl,seq = lay.template(t, prompt),lay.build(codes)
    assert bool((tpl==seq)[tpl>=0].all())
    assert int((tpl<0).sum()) == b*int((lay.template(t)<0).sum())*(t-part)//t

@some
@given(kind=kinds, k=st.integers(1,4), K=st.integers(1,40), b=st.integers(1,2), t=st.integers(1,4), seed=st.integers(0,2**31),
    temperature=st.sampled_from([0,1e-3,.7,1.,50.]), top_k=st.sampled_from([0,1,3,250]), top_p=st.sampled_from([0.,1e-6,.5,1.]),
    poison=st.sampled_from([0., torch.nan, torch.inf, -torch.inf, 3e38]), u=st.sampled_from([None,0.,1-2**-24]))
def test_nothing_illegal_is_ever_sampled(kind, k, K, b, t, seed, temperature, top_k, top_p, poison, u):
    "Whatever the logits and the noise: a sequence drawn with the masks reverts"
    lay,g = make(kind, k, K),torch.Generator().manual_seed(seed)
    seq,samp = lay.template(t).expand(b,-1,-1).clone(),Sampler(temperature, top_k, top_p)
    for i in range(seq.shape[2]):
        logits = torch.randn(b, lay.streams, lay.vocab, generator=g)*20 - 100*lay.slot_mask(i)  # the model would like anything else
        if poison: logits[torch.rand(logits.shape, generator=g)<.7] = poison
        noise = torch.rand(logits.shape, generator=g) if u is None else torch.full_like(logits, u)
        seq[...,i] = torch.where(seq[...,i]<0, sample(logits, lay.slot_mask(i), samp, noise), seq[...,i])
    assert same(lay.build(lay.revert(seq)), seq)

@some
@given(**shapes, at=st.integers(0,10**6), wrong=st.integers(-3,10**4))
def test_a_broken_frame_raises(kind, b, k, t, K, seed, at, wrong):
    lay = make(kind, k, K)
    seq = lay.build(make_codes(lay, b, t, seed))
    i = at % seq.numel()
    s,pos = i//seq.shape[2]%lay.streams, i%seq.shape[2]
    fine = bool(lay.slot_mask(pos)[wrong]) if 0<=wrong<lay.vocab else False
    if lay.pad is not None and int(lay.template(t)[s,pos])>=0: fine = wrong==lay.pad
    seq.view(-1)[i] = wrong
    if fine: lay.revert(seq)
    else:
        with pytest.raises(TokenError): lay.revert(seq)

@pytest.mark.parametrize('n,order', [(3, [0,1,2,2,1,2,2]), (4, [0,1,2,3,3,2,3,3,1,2,3,3,2,3,3])])
def test_frames_are_depth_first(n, order):
    assert [c for c,_ in depth_first(n)]==order
    seen = {}
    for scale,i in depth_first(n):  # each code right below the last one of the scale above
        assert scale==0 or i//2==seen[scale-1]
        seen[scale] = i

@pytest.mark.parametrize('k,n', [(3,7),(4,15)])
@pytest.mark.parametrize('offset', ['codebook','slot'])
def test_code_zero_survives(k, n, offset):
    lay = Frame(k, 4096, offset)
    codes = [torch.zeros(1, 5*2**i, dtype=torch.long) for i in range(k)]
    seq = lay.build(codes)
    assert seq.shape==(1,1,5*n) and same(lay.revert(seq), codes)

def test_slot_offsets_are_those_of_orpheus():
    "Orpheus writes id = code + 10 + slot·4096; its 10 specials belong to the model"
    codes = [torch.tensor([[5]]), torch.tensor([[6,7]]), torch.tensor([[8,9,10,11]])]
    assert Frame(3, 4096, 'slot').build(codes)[0,0].tolist()==[c+p*4096 for p,c in enumerate([5,6,8,9,7,10,11])]

def test_flat_is_the_papers_interleaving():
    codes = torch.arange(8).view(1,4,2)
    assert Flat(4,10).build(codes)[0,0].tolist()==[0,12,24,36,1,13,25,37]

@pytest.mark.parametrize('bad', [torch.zeros(4,3), torch.zeros(1,3,5).long(), torch.zeros(1,4,0).long(), torch.zeros(1,4,5), torch.full((1,4,5),-1), torch.full((1,4,5),8)])
@pytest.mark.parametrize('lay', [Flat(4,8), Delay(4,8)], ids=str)
def test_bad_codes_raise(lay, bad):
    with pytest.raises(TokenError): lay.build(bad)

@pytest.mark.parametrize('bad', [torch.zeros(1,7).long(), torch.zeros(1,1,0).long(), torch.zeros(1,1,6).long(), torch.zeros(1,2,7).long()])
def test_bad_frames_raise(bad):
    with pytest.raises(TokenError): Frame(3,8).revert(bad)

@pytest.mark.parametrize('make', [lambda: layout('stack',4,8), lambda: layout('flat',0,8), lambda: layout('delay',4,0), lambda: Flat(2,8).template(0), lambda: layout('frame',3,8,offset='x')])
def test_bad_layouts_raise(make):
    with pytest.raises(SoundlmError): make()

def test_base_is_general():
    assert Layout(2, 3, [0,3], end=True).masks[:,6].tolist()==[True,False]
    assert isinstance(Flat(2,3), Layout)
    assert check_codes(torch.zeros(0,2,1).long(), 2, 3).numel()==0
