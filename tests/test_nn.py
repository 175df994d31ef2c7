"Our blocks against transformers, and what decoding must hold: cached = uncached, fixed addresses, no host syncs, no changing shapes"
import pytest, torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from soundlm.core import SoundlmError
from soundlm.nn import GPT2Block, LayerNorm, Qwen3Block, RMSNorm, RoPE, Stack, gpt2_state_dict
from soundlm.layout import Delay, Flat, Frame
from soundlm.sample import Decoder, Graphed, Sampler, fresh, generate, repeats, sample, sample_anew

def randomise(model, seed=0):
    "Weights large enough that every part matters"
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters(): p.data.copy_(torch.randn(p.shape, generator=g)*.2 + (p.ndim==1)*.5)
    return model.eval()

@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad(): yield

# ---- parity -------------------------------------------------------------------------------------
def gpt2(n=64, **kw):
    from transformers import GPT2Config, GPT2Model
    return randomise(GPT2Model(GPT2Config(vocab_size=8, n_embd=48, n_layer=2, n_head=4, n_positions=n, bos_token_id=None, eos_token_id=None, **kw)))

@pytest.mark.parametrize('hidden', [None, 100])
def test_gpt2(hidden):
    ref = gpt2(n_inner=hidden)
    ours = Stack([GPT2Block(48, 4, i, hidden=hidden) for i in range(2)], LayerNorm(48)).eval()
    ours.load_state_dict(gpt2_state_dict(ref.state_dict()))
    x = torch.randn(3,40,48)
    assert (ref(inputs_embeds=x).last_hidden_state - ours(x+ref.wpe.weight[:40])).abs().max() < 1e-4

def test_gpt2_with_padding():
    ref,x,mask = gpt2(),torch.randn(2,20,48),torch.ones(2,20,dtype=torch.bool)
    mask[1,3:7] = False
    ours = Stack([GPT2Block(48, 4, i) for i in range(2)], LayerNorm(48)).eval()
    ours.load_state_dict(gpt2_state_dict(ref.state_dict()))
    want = ref(inputs_embeds=x, attention_mask=mask.long(), position_ids=torch.arange(20)[None]).last_hidden_state
    assert (want - ours(x+ref.wpe.weight[:20], mask))[mask].abs().max() < 1e-4

def test_gpt2_weights_go_back():
    ours = randomise(Stack([GPT2Block(48, 4, i) for i in range(2)], LayerNorm(48)), 5)
    there = gpt2_state_dict(ours.state_dict())
    ref = gpt2()
    missing,unexpected = ref.load_state_dict(there, strict=False)
    assert not unexpected and all('wte' in m or 'wpe' in m or m.endswith('attn.bias') for m in missing)
    back = gpt2_state_dict(there)
    assert back.keys()==ours.state_dict().keys() and all(torch.equal(v, back[k]) for k,v in ours.state_dict().items())

def from_rotary(ref, n_layers):
    "The state of a Llama or Qwen3 of transformers, in our names"
    src,res = ref.state_dict(),{'norm.weight': ref.norm.weight}
    for i in range(n_layers):
        a,m,to = f'layers.{i}.self_attn.',f'layers.{i}.mlp.',f'blocks.{i}.'
        res |= {to+'attn.qkv.weight': torch.cat([src[a+f'{n}_proj.weight'] for n in 'qkv']), to+'attn.out.weight': src[a+'o_proj.weight'],
            to+'mlp.up.weight': torch.cat([src[m+'gate_proj.weight'], src[m+'up_proj.weight']]), to+'mlp.down.weight': src[m+'down_proj.weight'],
            to+'norm1.weight': src[f'layers.{i}.input_layernorm.weight'], to+'norm2.weight': src[f'layers.{i}.post_attention_layernorm.weight']}
        for n in 'qk':
            if a+f'{n}_norm.weight' in src: res[to+f'attn.{n}_norm.weight'] = src[a+f'{n}_norm.weight']
    return res

@pytest.mark.parametrize('kind', ['llama','qwen3'])
def test_rotary_blocks(kind):
    "RoPE, grouped queries, QK-norm, SwiGLU and RMSNorm, two layers of each"
    from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model
    C,M = dict(llama=(LlamaConfig,LlamaModel), qwen3=(Qwen3Config,Qwen3Model))[kind]
    ref = randomise(M(C(vocab_size=8, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=64, rope_parameters=dict(rope_type='default', rope_theta=1e4), rms_norm_eps=1e-6,
        pad_token_id=None, bos_token_id=None, eos_token_id=None)))
    ours = Stack([Qwen3Block(48, 6, 2, 80, 16, i, qk_norm=kind=='qwen3') for i in range(2)], RMSNorm(48,1e-6), RoPE(16,64,1e4)).eval()
    ours.load_state_dict(from_rotary(ref, 2))
    x = torch.randn(3,40,48)
    assert (ref(inputs_embeds=x).last_hidden_state - ours(x)).abs().max() < 1e-4

def test_cross_attention():
    "Against torch.nn.MultiheadAttention"
    from soundlm.nn import Attention
    ref = randomise(nn.MultiheadAttention(48, 4, kdim=20, vdim=20, batch_first=True))
    ours = Attention(48, 4, d_cond=20, bias=True).eval()
    q,k,v = ref.in_proj_bias.chunk(3)
    ours.load_state_dict({'q.weight': ref.q_proj_weight, 'q.bias': q, 'kv.weight': torch.cat([ref.k_proj_weight,ref.v_proj_weight]), 'kv.bias': torch.cat([k,v]),
        'out.weight': ref.out_proj.weight, 'out.bias': ref.out_proj.bias})
    x,cond,mask = torch.randn(2,9,48),torch.randn(2,5,20),torch.tensor([[True]*5,[True,True,False,False,False]])
    want = ref(x, cond, cond, key_padding_mask=~mask, need_weights=False)[0]
    assert (ours(x, see=mask[:,None,None], cond=cond) - want).abs().max() < 1e-5

# ---- decoding -----------------------------------------------------------------------------------
class LM(nn.Module):
    "The smallest model that keeps the contract: `kind` chooses the blocks, `cross` where the condition goes"
    context = 200
    def __init__(self, layout, kind='gpt2', cross=False, d=32):
        super().__init__()
        s,self.V,self.cross = layout.streams,layout.vocab,cross
        c = d if cross else None
        if kind=='gpt2': self.trunk = Stack([GPT2Block(d,2,i,d_cond=c) for i in range(2)], LayerNorm(d))
        else: self.trunk = Stack([Qwen3Block(d,4,2,48,16,i,d_cond=c) for i in range(2)], RMSNorm(d), RoPE(16,self.context))
        self.emb = nn.ModuleList([nn.Embedding(self.V,d) for _ in range(s)])
        self.start,self.null,self.pos = (nn.Parameter(torch.empty(*z)) for z in ((1,1,d),(1,1,d),(self.context,d)))
        self.head = nn.Linear(d, s*self.V)
        randomise(self)
    def embed(self, ids): return sum(e(ids[:,i]) for i,e in enumerate(self.emb))
    def prefix_slots(self, cond): return 0 if cond is None or self.cross else cond.shape[1]
    def new_cache(self, batch, length): return self.trunk.new_cache(batch, length)
    def null_cond(self, cond, mask): return self.null.expand_as(cond), mask
    def forward(self, ids, cond=None, mask=None, cache=None):
        m,x = self.prefix_slots(cond), torch.cat([self.start.expand(len(ids),-1,-1), self.embed(ids)], 1)
        kw = dict(cond=cond, cond_mask=mask) if self.cross else {}
        see = None if mask is None or self.cross else torch.cat([mask, mask.new_ones(x.shape[:2])], 1)
        if m: x = torch.cat([cond,x], 1)
        if cache is not None: cache.prefill(x.shape[1], see, offset=m+1)
        h = self.trunk(x+self.pos[:x.shape[1]], see, cache, **kw)
        return self.head(h[:,m:]).unflatten(-1, (-1,self.V))
    def prefill(self, ids, cond, mask, cache): return self(ids, cond, mask, cache)[:,-1]
    def step(self, ids, pos, cache):
        slot = cache.slot(pos)
        h = self.trunk(self.embed(ids[...,None])+self.pos.index_select(0,slot), cache=cache, slot=slot)
        return self.head(h[:,0]).unflatten(-1, (-1,self.V))

layouts = [Flat(4,16), Delay(4,16), Frame(3,16)]
ending = [Flat(4,16,end=True), Delay(4,16,end=True), Frame(3,16,end=True), Frame(3,16,'slot',True)]
ras = Sampler(top_k=2, window=4, ratio=.3)
both = pytest.mark.parametrize('kind', ['gpt2','qwen3'])
where = pytest.mark.parametrize('cross', [False,True])

def inputs(b=2, m=5, d=32):
    mask = torch.ones(b,m,dtype=torch.bool)
    mask[1:,3:] = False
    return torch.randn(b,m,d),mask

def started(lm, lay, p, t=8):
    "A cache after a prefill of `p` positions, and the sequence"
    cond,mask = inputs()
    codes = [torch.randint(16,(2,t*2**i)) for i in range(3)] if isinstance(lay,Frame) else torch.randint(16,(2,4,t))
    seq = lay.build(codes)
    cache = lm.new_cache(2, seq.shape[2]+6)
    return cache, seq, lm.prefill(seq[...,:p], cond, mask, cache), lm(seq, cond, mask)

@both
@where
@pytest.mark.parametrize('lay', layouts, ids=str)
@pytest.mark.parametrize('p', [0,3])
def test_cached_is_uncached(kind, cross, lay, p):
    lm = LM(lay, kind, cross)
    cache,seq,logits,full = started(lm, lay, p)
    steps = [logits]
    for i in range(p, seq.shape[2]):
        cache.fit(cache.offset+i, step=8)
        steps.append(lm.step(seq[...,i], torch.tensor(i), cache))
    assert (torch.stack(steps,1)-full[:,p:]).abs().max() < 1e-4

@both
@where
def test_addresses_are_fixed(kind, cross):
    lm = LM(layouts[0], kind, cross)
    cache,seq,*_ = started(lm, layouts[0], 0)
    where = lambda: [t.data_ptr() for t in (cache.k, cache.v, cache.see, *(t for kv in cache.cross.values() for t in kv))]
    before = where()
    for i in range(20): cache.fit(cache.offset+i, step=8); lm.step(seq[...,i], torch.tensor(i), cache)
    assert where()==before

class NoSync(TorchDispatchMode):
    "Fails on what reads a value on the host or makes a shape from values; notes all shapes"
    banned = {'_local_scalar_dense','item','nonzero','masked_select','_unique2','unique_dim','equal','is_nonzero','repeat_interleave'}
    def __init__(self): super().__init__(); self.shapes = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.banned, name
        assert name!='_to_copy' or 'device' not in (kwargs or {}), 'a copy between devices'
        res = func(*args, **(kwargs or {}))
        self.shapes.append((name, [tuple(t.shape) for t in tree_leaves(res) if isinstance(t, torch.Tensor)]))
        return res

@both
@where
@pytest.mark.parametrize('lay', layouts+ending, ids=str)
@pytest.mark.parametrize('samp', [Sampler(top_k=5, top_p=.9, guidance=3.), Sampler(top_k=0), Sampler(temperature=0), ras], ids=['all','plain','greedy','ras'])
def test_step_never_syncs_or_changes_shape(kind, cross, lay, samp):
    "The whole of a step: model, guidance, mask, filters, draw, write"
    lm,(cond,mask) = LM(lay, kind, cross),inputs()
    dec = Decoder(lm, lay, lay.template(5).expand(2,-1,-1).clone(), samp, [0,1])
    dec.prefill(0, cond, mask)
    dec.cache.fit(dec.cache.length-1)
    runs = []
    for _ in range(3):
        with NoSync() as mode: dec.step()
        runs.append(mode.shapes)
    assert runs[0]==runs[1]==runs[2]

@pytest.mark.parametrize('kind,cross', [('gpt2',False),('qwen3',True)])
def test_step_is_one_graph(kind, cross):
    "Dynamo finds no graph break, compiles once, and gives the same logits"
    lm = LM(layouts[0], kind, cross)
    cache,seq,*_ = started(lm, layouts[0], 0)
    compiled = torch.compile(lm.step, backend='eager', fullgraph=True, dynamic=False)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for i in range(5):
            a = lm.step(seq[...,i], torch.tensor(i), cache)
            assert torch.equal(compiled(seq[...,i], torch.tensor(i), cache), a)

def test_captured_steps_run_once_each(monkeypatch):
    "The order of a CUDA graph (warm up, capture, replay) without CUDA: as many steps are run as are asked for"
    from contextlib import contextmanager
    done,recording = [],[]
    def step(): recording[-1].work.append(step) if recording else done.append(1)
    class Graph:
        def __init__(self): self.work = []
        def replay(self): [f() for f in self.work]
    class Stream:
        def wait_stream(self, other): pass
    @contextmanager
    def graph(g): recording.append(g); yield; recording.pop()
    @contextmanager
    def stream(s): yield
    for name,fake in dict(CUDAGraph=Graph, Stream=Stream, current_stream=Stream, graph=graph, stream=stream).items(): monkeypatch.setattr(torch.cuda, name, fake)
    run = Graphed(step)
    for i in range(40): run(256*(i//20)); assert len(done)==i+1
    assert len(run.graphs)==2

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@both
@where
@pytest.mark.parametrize('lay', layouts+ending, ids=str)
@pytest.mark.parametrize('samp', [Sampler(top_k=5, guidance=2.), ras], ids=['guided','ras'])
def test_cuda_graph_is_eager(kind, cross, lay, samp):
    lm,(cond,mask) = LM(lay, kind, cross).cuda(),(t.cuda() for t in inputs())
    kw = dict(cond=cond, cond_mask=mask, sampler=samp, seeds=0)
    assert torch.equal(generate(lm, lay, 10, graph=True, **kw), generate(lm, lay, 10, graph=False, **kw))

# ---- generate -----------------------------------------------------------------------------------
@both
@where
@pytest.mark.parametrize('lay', layouts, ids=str)
@pytest.mark.parametrize('guidance', [1.,3.])
def test_a_seed_is_a_row_in_any_batch(kind, cross, lay, guidance):
    lm,(cond,mask) = LM(lay, kind, cross),inputs(3)
    samp = Sampler(top_k=8, guidance=guidance)
    all3 = generate(lm, lay, 6, cond, mask, samp, seeds=[7,8,9])
    one = generate(lm, lay, 6, cond[2:], mask[2:], samp, seeds=[9])
    assert torch.equal(all3[2:], one)
    assert not torch.equal(one, generate(lm, lay, 6, cond[2:], mask[2:], samp, seeds=[10]))
    lay.revert(all3)

@both
@where
def test_guidance_in_one_batch_is_two_passes(kind, cross):
    lay = layouts[0]
    lm,(cond,mask) = LM(lay, kind, cross),inputs()
    seq = generate(lm, lay, 6, cond, mask, Sampler(temperature=0, guidance=3.))
    null,_ = lm.null_cond(cond, mask)
    for i in range(seq.shape[2]):
        c,u = (lm(seq[...,:i], z, mask)[:,-1] for z in (cond,null))
        logits = (u+3*(c-u)).masked_fill(~lay.slot_mask(i), -torch.inf)
        assert torch.equal(logits.argmax(-1), seq[...,i])

@pytest.mark.parametrize('lay', layouts, ids=str)
def test_a_prompt_is_kept_and_continued(lay):
    lm = LM(lay)
    whole = lay.revert(generate(lm, lay, 6, sampler=Sampler(temperature=0)))
    prompt = [c[:,:2*2**i] for i,c in enumerate(whole)] if isinstance(lay,Frame) else whole[...,:2]
    got = lay.revert(generate(lm, lay, 6, sampler=Sampler(temperature=0), prompt=prompt))
    pairs = zip(got,whole) if isinstance(lay,Frame) else [(got,whole)]
    assert all(torch.equal(a,b) for a,b in pairs)

# ---- rows that end, rows that are stuck -----------------------------------------------------------
def tired(lay, seed=0, keen=2.):
    "An LM that likes to end"
    lm = LM(lay)
    lm.head.weight.data.mul_(.3)
    lm.head.bias.data.view(lay.streams,-1)[:,lay.end] += keen
    return lm

@pytest.mark.parametrize('lay', ending, ids=str)
@pytest.mark.parametrize('samp', [Sampler(), Sampler(top_k=8, guidance=2.), ras], ids=['plain','guided','ras'])
def test_rows_end_by_themselves(lay, samp):
    "A row's ids depend on no other row, what follows its end is `end`, and what is before it reverts"
    lm,(cond,mask) = tired(lay),inputs(6)
    seq = generate(lm, lay, 12, cond, mask, samp, seeds=0)
    rows = lay.trim(seq)
    sizes = [r.shape[2] for r in rows]
    assert len(set(sizes))>1
    for i,row in enumerate(rows):
        alone = generate(lm, lay, 12, cond[i:i+1], mask[i:i+1], samp, seeds=[i])
        assert torch.equal(alone[0], seq[i,:,:alone.shape[2]]) and bool((seq[i,:,alone.shape[2]:]==lay.end).all())
        assert torch.equal(lay.trim(alone)[0], row)
        if row.shape[2]: lay.revert(row)

@pytest.mark.parametrize('lay', ending, ids=str)
def test_the_run_ends_with_its_last_row(lay):
    lm,steps = tired(lay, keen=20.),[]
    seq = generate(lm, lay, 12, seeds=[1,2,3], on_step=lambda i,_: steps.append(i))
    assert seq.shape==(3, lay.streams, lay.streams) and bool((seq[:,0]==lay.end).all()) and len(steps)==lay.streams  # a delay's last stream is as many steps late
    assert [r.shape[2] for r in lay.trim(seq)]==[0,0,0]
    lm = tired(lay, keen=-50.)
    whole = generate(lm, lay, 5, seeds=0)
    assert whole.shape[2]==lay.length(5) and torch.equal(lay.trim(whole)[0], whole)

@pytest.mark.parametrize('lay', ending, ids=str)
def test_a_prompt_may_be_all_there_is(lay):
    prompt = [torch.randint(16,(2,2*2**i)) for i in range(3)] if isinstance(lay,Frame) else torch.randint(16,(2,4,2))
    for row,want in zip(lay.trim(generate(tired(lay, keen=20.), lay, 6, prompt=prompt, seeds=0)), lay.build(prompt)): assert torch.equal(row[0], want)

@pytest.mark.parametrize('lay', layouts, ids=str)
def test_an_end_that_is_not_said_changes_nothing(lay):
    "The same weights and noise with and without the id"
    more = type(lay)(lay.k, lay.K, end=True)
    for i in range(2):
        logits,noise = torch.randn(2, lay.streams, more.vocab),torch.rand(2, lay.streams, more.vocab)
        logits[...,-1] = -50
        assert torch.equal(sample(logits[...,:-1], lay.slot_mask(i), Sampler(), noise[...,:-1]), sample(logits, more.slot_mask(i), Sampler(), noise))

@pytest.mark.parametrize('lay', layouts+ending, ids=str)
def test_repetition_is_looked_for_in_the_same_slot(lay):
    "Against a plain count"
    g = torch.Generator().manual_seed(0)
    seq = torch.randint(3, (2,lay.streams,60), generator=g)
    for pos in (0, 1, lay.period, 41, 59):
        for samp in (Sampler(window=1, ratio=0.), Sampler(window=5, ratio=.4), Sampler(window=90, ratio=.02)):
            ids = torch.randint(3, (2,lay.streams), generator=g)
            got = repeats(ids, seq, torch.tensor([pos]), lay.period, samp)
            past = [seq[...,p] for p in range(pos-lay.period, -1, -lay.period)][:samp.window]
            count = sum((p==ids).long() for p in past) if past else torch.zeros_like(ids)
            assert torch.equal(got, count > round(samp.ratio*samp.window, 6))

@pytest.mark.parametrize('lay', layouts, ids=str)
def test_a_loop_is_broken(lay):
    "A model that is sure of one id a slot, and top-k 1: only repetition-aware sampling says anything else"
    lm = LM(lay)
    lm.head.weight.data.zero_()
    run = lambda **kw: generate(lm, lay, 20, sampler=Sampler(top_k=1, **kw), seeds=[0,1])
    kinds = lambda seq: [len(c.unique()) for c in (lay.revert(seq) if isinstance(lay,Frame) else lay.revert(seq).unbind(1))]
    assert set(kinds(run()))=={1} and min(kinds(run(window=5)))>2
    assert torch.equal(run(window=5, ratio=1.), run()) and torch.equal(run(window=5)[1:], generate(lm, lay, 20, sampler=Sampler(top_k=1, window=5), seeds=[1]))
    greedy = dict(lm=lm, layout=lay, t=9)
    assert torch.equal(generate(sampler=Sampler(temperature=0), **greedy), generate(sampler=Sampler(temperature=0, window=3, ratio=0.), **greedy))

def test_a_second_draw_is_from_the_whole_distribution():
    "Also where the filters leave the first no choice, and whatever the first noise was"
    p = torch.tensor([.4,.3,.2,.1])
    logits,noise = p.log().expand(40_000,1,4),torch.rand(40_000, 1, 4, generator=torch.Generator().manual_seed(0))
    for samp in (Sampler(top_k=1), Sampler(top_k=0), Sampler(top_k=2, top_p=.5)):
        first = sample(logits, torch.ones(4).bool(), samp, noise)
        again = sample_anew(first, torch.ones_like(first).bool(), logits, torch.ones(4).bool(), samp, noise)
        for i in first.unique():
            got = again[first==i].bincount(minlength=4)/(first==i).sum()
            assert (got-p).abs().max() < 4*(.25/int((first==i).sum()))**.5
    one = torch.ones_like(noise)-2**-24
    for u in (one, one*0): assert 0<=float(fresh(u).min()) and float(fresh(u).max())<1

@torch.inference_mode()
def test_off_costs_nothing(monkeypatch):
    "Without `end` and `window` a step does not even call what they need"
    import soundlm.sample as m
    def never(*a): raise AssertionError
    for name in ('repeats','fresh','sample_anew','keep_end'): monkeypatch.setattr(m, name, never)
    for lay in layouts: generate(LM(lay), lay, 3, seeds=0)

def test_generate_leaves_the_model_as_it_was():
    lm = LM(layouts[0]).train()
    lm.trunk.blocks[0].eval()
    seq = generate(lm, layouts[0], 2, seeds=0)
    assert lm.training and lm.trunk.blocks[1].training and not lm.trunk.blocks[0].training
    assert not seq.is_inference() and seq.dtype==torch.int64

@pytest.mark.parametrize('change', [dict(t=0), dict(t=60), dict(sampler=Sampler(guidance=2.)), dict(seeds=[1,2], prompt=torch.zeros(3,4,1).long()),
    dict(prompt=torch.zeros(1,4,9).long()), dict(prompt=torch.full((1,4,1),16)), dict(graph=True)], ids=str)
def test_bad_requests_raise(change):
    with pytest.raises(SoundlmError): generate(**dict(lm=LM(layouts[0]), layout=layouts[0], t=4) | change)

def test_broken_weights_raise():
    lm = LM(layouts[0])
    lm.head.weight.data.fill_(torch.nan)
    with pytest.raises(SoundlmError, match='not finite'): generate(lm, layouts[0], 4)

@pytest.mark.parametrize('kw', [dict(temperature=-1), dict(temperature=1e-6), dict(temperature=float('nan')), dict(top_k=-1), dict(top_k=1.5), dict(top_p=1.1), dict(top_p=-.1), dict(guidance=-1.), dict(guidance=float('nan')),
    dict(window=-1), dict(window=1.5), dict(window=float('nan')), dict(ratio=-.1), dict(ratio=1.1), dict(ratio=float('nan'))], ids=str)
def test_bad_samplers_raise(kw):
    with pytest.raises(SoundlmError): Sampler(**kw)
