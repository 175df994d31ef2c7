"Model B: parity with MusicGen, both ways; what it hears and what it must not hear; data, faults and files"
import json, math, shutil, warnings
import numpy as np, pytest, torch
from fastcore.test import test_eq as eq
from soundlm import hub
from soundlm.core import AudioError, HubError, SoundlmError, SoundlmWarning
from soundlm.music import fusion as B
from soundlm.music.baseline import MusicA
from soundlm.music.guidance import guided_apart
from soundlm.sample import Sampler, generate, guide

greedy = Sampler(temperature=0, guidance=3.)
close = lambda a, b, eps=1e-4: torch.testing.assert_close(a, b, atol=eps, rtol=0)
gen = lambda seed=0: torch.Generator().manual_seed(seed)
def codes(b=2, t=12, seed=0): return torch.randint(2048, (b,4,t), generator=gen(seed))

def rough(m, std=.15, seed=0):
    "Weights large enough that every branch shows in the logits"
    torch.manual_seed(seed)
    for n,p in m.named_parameters():
        if p.ndim>1: torch.nn.init.normal_(p, std=std)
        elif n.endswith('bias'): torch.nn.init.normal_(p, std=.1)
    return m.eval()
def small(**kw): return rough(B.MusicB(B.music_b_tiny(**dict(dim=48, n_heads=4, hidden=96, n_layers=2, max_frames=150)|kw)))
def sibling(**kw): return small(**dict(tied=False, scale=1., prompt_frames=0)|kw)

@pytest.fixture(scope='module')
def encoder(): return hub.load('t5-tiny')
@pytest.fixture(scope='module')
def codec(): return hub.load('encodec_32khz-tiny')
@pytest.fixture(scope='module')
def mel(): return hub.load('mel_32khz')

@pytest.fixture(scope='module')
def said():
    "Features of two captions of different length, as a text encoder gives them"
    mask = torch.arange(9)<torch.tensor([[9],[4]])
    return torch.randn(2, 9, 128, generator=gen())*mask[...,None], mask

@pytest.fixture(scope='module')
def twin(encoder, codec):
    "A random MusicGen, and the Model B it was poured from"
    m = sibling()
    return B.as_musicgen(m, encoder, codec), m

@pytest.fixture(scope='module')
def published(twin, encoder, tmp_path_factory):
    "That MusicGen as a folder, as transformers writes it"
    d = tmp_path_factory.mktemp('musicgen')/'random'
    twin[0].save_pretrained(d)
    encoder.tokenizer.save(str(d/'tokenizer.json'))
    return d

def broken(folder, tmp_path, state=None, **config):
    "A copy with other numbers in config.json, or other weights"
    d = shutil.copytree(folder, tmp_path/'broken')
    c = json.loads((d/'config.json').read_text())
    for k,v in config.items(): c[k] = c[k]|v if isinstance(v, dict) else v
    (d/'config.json').write_text(json.dumps(c))
    if state: hub.save(d, state, c, 'card')
    return d

# MusicGen
@torch.no_grad()
def musicgen_logits(ref, m, c, text, mask):
    ids = torch.cat([m.start().expand(len(c),-1,-1), m.layout.build(c)[...,:-1]], -1).flatten(0, 1)
    return ref(decoder_input_ids=ids, encoder_outputs=(text,), attention_mask=mask.long()).logits.view(len(c), 4, -1, 2048)
@torch.no_grad()
def our_logits(m, c, text, mask): return m.logits(m.hidden(c, text, mask)).transpose(1, 2)[...,:2048]

@pytest.mark.parametrize('what', ['whole','padded','null'])
def test_parity(twin, said, what):
    (ref,m),(text,mask) = twin, said
    mask = dict(whole=torch.ones_like(mask), padded=mask, null=torch.zeros_like(mask))[what]
    want = musicgen_logits(ref, m, codes(), text, mask)
    assert want.std()>.5
    close(our_logits(m, codes(), text, mask), want)
    if what=='null': close(our_logits(m, codes(), *m.null_cond(text, mask)), want)

def test_parity_of_a_tied_and_scaled_model(encoder, codec, said):
    "With an audio prompt's weights on board, and none given"
    m = small(tied=True, scale=14., prompt_frames=100)
    close(our_logits(m, codes(), *said), musicgen_logits(B.as_musicgen(m, encoder, codec), m, codes(), *said))

def test_decoder_alone(twin, said):
    "The decoder without the wrapper: the projection and the mask are the wrapper's"
    (ref,m),(text,mask) = twin, said
    ids = torch.cat([m.start().expand(2,-1,-1), m.layout.build(codes())[...,:-1]], -1).flatten(0, 1)
    with torch.no_grad(): e = ref.enc_to_dec_proj(text)*mask[...,None]
    with torch.no_grad(): want = ref.decoder(input_ids=ids, encoder_hidden_states=e, encoder_attention_mask=mask.long()).logits
    close(our_logits(m, codes(), text, mask), want.view(2, 4, -1, 2048))

def test_both_directions(twin):
    ref,m = twin
    state,mine = ref.state_dict(), m.state_dict()
    there,back = B.to_musicgen(m), B.from_musicgen(state)
    assert set(back)==set(mine) and all(torch.equal(back[k], mine[k]) for k in mine)
    assert all(torch.equal(state[k], v) for k,v in there.items())
    assert {k for k in state if k.startswith(('decoder.','enc_to_dec_proj.'))} - set(there) <= {'decoder.model.decoder.embed_positions.weights'}

@pytest.mark.parametrize('guidance', [1., 3.])
def test_generate_writes_the_same(twin, published, encoder, guidance):
    ref,m = twin[0], hub.load(str(published))
    prompts = ['techno beat with a synth lead', 'a slow blues']
    ids,mask = encoder.tokenize(prompts)
    want = ref.generate(input_ids=ids, attention_mask=mask.long(), max_new_tokens=20+3, do_sample=False, guidance_scale=guidance)
    got = m.sound(m.write(20, *m.conditions(prompts), Sampler(temperature=0, guidance=guidance)))
    close(got, want*(.95/want.abs().amax((1,2), keepdim=True).clamp(min=.95)))

def test_loading(twin, published, codec, encoder):
    m = hub.load(str(published))
    assert (m.name, m.training, m.prompt, m.config.layout, m.config.frame_rate) == ('random', False, None, 'delay', 50)
    assert all(torch.equal(v, twin[1].state_dict()[k]) for k,v in m.state_dict().items())
    assert torch.equal(m.codec.encode(torch.ones(1,1,32000)*.1), codec.encode(torch.ones(1,1,32000)*.1))
    close(m.encoder.encode(['a slow blues'])[0], encoder.encode(['a slow blues'])[0], 1e-6)
    assert m.encoder.max_tokens==256==m.config.text_len

def test_published_names_of_weight_norm(twin, published, tmp_path):
    "Released weights write weight_g and weight_v where newer torch says parametrizations"
    state = hub.read_weights(published)
    old = {k.replace('parametrizations.weight.original0','weight_g').replace('parametrizations.weight.original1','weight_v'): v.contiguous() for k,v in state.items()}
    assert any(k.endswith('weight_g') for k in old)
    d = shutil.copytree(published, tmp_path/'old')
    hub.save(d, old, hub.read_config(published), 'card')
    wav = torch.randn(1, 1, 32000, generator=gen())*.1
    assert torch.equal(hub.load(str(d)).codec.encode(wav), hub.load(str(published)).codec.encode(wav))

@pytest.mark.parametrize('decoder,why', [(dict(audio_channels=2, num_codebooks=8), 'audio_channels=2'), (dict(activation_function='relu'), 'activation_function=relu'),
    (dict(num_codebooks=2), 'num_codebooks=2'), (dict(vocab_size=1024), 'vocab_size=1024'), (dict(hidden_size=128), 'as wide as its music')])
def test_variants_are_refused(published, tmp_path, decoder, why):
    with pytest.raises(HubError, match=why): hub.load(str(broken(published, tmp_path, decoder=decoder)))

def test_damaged_musicgens(published, tmp_path):
    with pytest.raises(HubError, match='do not fit'): hub.load(str(broken(published, tmp_path, decoder=dict(num_hidden_layers=3))))
    with pytest.raises(HubError, match='expected those of Musicgen'): B.from_musicgen({})
    with pytest.raises(HubError, match='describes no MusicGen'): B.musicgen_config(dict(model_type='musicgen', decoder='none'))

def test_what_musicgen_cannot_be(encoder, codec, mel):
    with pytest.raises(SoundlmError, match='expected delay'): B.as_musicgen(small(layout='flat'), encoder, codec)
    with pytest.raises(SoundlmError, match='another width'): B.as_musicgen(small(dim=128), encoder, codec)
    with pytest.raises(SoundlmError, match='expected an EnCodec'): B.as_musicgen(small(), encoder, mel)

def test_inner_parts_are_saved_first(published, encoder, codec, tmp_path):
    m = hub.load(str(published))
    with pytest.raises(HubError, match='folder of its own'): m.save(tmp_path/'no', 'card')
    m.parts = dict(encoder=encoder, codec=codec)
    m.save(tmp_path/'yes', 'card')
    assert hub.load(str(tmp_path/'yes')).config==m.config

# the memory
kinds = [(), ('text','text_mask'), ('prompt',), ('text','text_mask','prompt'), ('text','text_mask','prompt','prompt_mask')]
def listen(said, b=2): return dict(text=said[0], text_mask=said[1], prompt=codes(b, 60, 1), prompt_mask=torch.tensor([True,False]))

@pytest.mark.parametrize('keep', kinds, ids=lambda k: '+'.join(k) or 'nothing')
@pytest.mark.parametrize('layout', ['flat','delay'])
def test_cached_is_uncached(said, layout, keep):
    m = small(layout=layout); cond,mask = m.condition({k: listen(said)[k] for k in keep})
    c = codes(t=6); seq = m.layout.build(c)
    with torch.no_grad():
        whole,cache = m.logits(m.hidden(c, cond, mask)), m.new_cache(2, 1+seq.shape[-1])
        got = [m.prefill(seq[...,:3], cond, mask, cache)] + [m.step(seq[...,j], torch.tensor([j]), cache) for j in range(3, seq.shape[-1]-1)]
    close(torch.stack(got, 1), whole[:,3:])

@pytest.mark.parametrize('layout', ['flat','delay'])
def test_nothing_looks_ahead(said, layout):
    m = small(layout=layout); cond,mask = m.condition(listen(said))
    a = codes(t=8); b = a.clone(); b[...,5:] = codes(t=3, seed=9)
    n = 5*m.layout.period if layout=='flat' else 5
    with torch.no_grad(): close(m.logits(m.hidden(a, cond, mask))[:,:n+1], m.logits(m.hidden(b, cond, mask))[:,:n+1], 1e-5)

@pytest.mark.parametrize('style', [None, 1.5, 0.])
def test_guidance_in_one_batch_is_separate_passes(said, style):
    m = small(); cond,mask = m.condition(listen(said)); c = codes(t=6); seq = m.layout.build(c)
    want = guided_apart(m, c, cond, mask, 3., style)
    conds = [(cond,mask)] + ([m.style_cond(cond, mask)] if style is not None else []) + [m.null_cond(cond, mask)]
    both,seen = (torch.cat(o) for o in zip(*conds)); n = len(conds)
    with torch.no_grad():
        cache = m.new_cache(2*n, 1+seq.shape[-1])
        got = [m.prefill(seq[...,:1].repeat(n,1,1), both, seen, cache)] + [m.step(seq[...,j].repeat(n,1), torch.tensor([j]), cache) for j in range(1, seq.shape[-1]-1)]
    close(torch.stack([guide(o, 3., style) for o in got], 1)[...,:2048], want[:,1:,:,:2048], 1e-3)

@pytest.mark.parametrize('style', [None, 1.5])
def test_generate_takes_the_likeliest_of_separate_passes(said, style):
    "Every id that the decode loop chose greedily is the best one under guidance computed apart"
    m = small(); cond,mask = m.condition(listen(said))
    c = m.layout.revert(generate(m, m.layout, 5, cond, mask, Sampler(temperature=0, guidance=2., style_guidance=style), seeds=0))
    apart,y = guided_apart(m, c, cond, mask, 2., style)[...,:2048].transpose(1, 2), m.targets(c)
    chosen = apart.gather(-1, y.clamp(min=0)[...,None])[...,0]
    assert ((apart.amax(-1)-chosen)[y>=0]<1e-3).all()

def test_double_guidance_without_a_clip_is_plain_guidance(said):
    m = small(); run = lambda s: generate(m, m.layout, 10, *m.fuse(*said), Sampler(temperature=.9, guidance=3., style_guidance=s), seeds=0)
    assert torch.equal(run(None), run(1.5))
    close(guided_apart(m, codes(), *said, 3., 7.), guided_apart(m, codes(), *said, 3., None), 1e-3)

def test_no_condition_is_zeros(said):
    m = small(); memory = m.fuse(*said, codes(2, 60, 1))
    with torch.no_grad():
        none = m.hidden(codes())
        for c in (m.null_cond(*memory), m.fuse(torch.zeros(2,5,128)), (memory[0], torch.zeros_like(memory[1]))): close(m.hidden(codes(), *c), none, 1e-5)
        assert (m.hidden(codes(), *memory)-none).abs().max()>.1

def test_each_condition_can_be_absent(said):
    "A row that lacks one in a batch is as if it had never been given"
    m = small(); text,mask = said; p = codes(2, 60, 1); yes,no = torch.tensor([True,True]), torch.tensor([False,False])
    run = lambda *c: m.hidden(codes(), *c)
    with torch.no_grad():
        close(run(*m.fuse(text, mask, p, no)), run(*m.fuse(text, mask)), 1e-5)
        close(run(*m.fuse(text, torch.zeros_like(mask), p, yes)), run(*m.fuse(None, None, p)), 1e-5)
        close(run(*m.style_cond(*m.fuse(text, mask, p))), run(*m.fuse(None, None, p)), 1e-5)

def test_text_and_sound_can_be_told_apart(said):
    m = small(); text,mask = said; p = codes(2, 60, 1)
    with torch.no_grad():
        base,words = m.hidden(codes(), *m.fuse(text, mask, p)), m.hidden(codes(), *m.fuse(text, mask))
        for other in (p.flip(-1), p.roll(7, -1), p.flip(0), p[...,:50]): assert (m.hidden(codes(), *m.fuse(text, mask, other))-base).abs().max()>1e-3
        memory,seen = m.fuse(text, mask, p) # The same vectors at other places of the memory: attention does not number them, the vectors carry it
        close(m.hidden(codes(), memory.roll(5, 1), seen.roll(5, 1)), base, 1e-4)
        m.mark.add_(3.)
        assert (m.hidden(codes(), *m.fuse(text, mask, p))-base).abs().max()>1e-3
        m.prompt.weight.zero_()
        assert torch.equal(m.hidden(codes(), *m.fuse(text, mask)), words)

def test_memory_has_fixed_places(said):
    m = small(); memory,seen = m.fuse(*said, codes(2, 60, 1))
    eq((memory.shape, seen.sum(1).tolist()), ((2,108,128), [69,64]))
    assert seen[:,48:].all() and not seen[:,9:48].any()
    eq(m.fuse(*said)[0].shape, (2,9,128))
    eq(m.fuse(torch.randn(1,70,128), None, codes(1, 60))[0].shape, (1,108,128))
    eq(m.prefix_slots(memory), 0)

def test_a_row_is_the_same_in_any_batch(encoder, mel):
    m = small(); m.parts = dict(encoder=encoder, codec=mel)
    prompts,style = ['techno beat', 'a slow and rather sad blues with a clean guitar', None], codes(3, 60, 1)
    for s in (None, style):
        together = m.write(12, *m.conditions(prompts, s), Sampler(temperature=.9, guidance=2., style_guidance=None if s is None else 1.5), seed=4)
        for i in range(3):
            alone = m.write(12, *m.conditions(prompts[i:i+1], None if s is None else s[i:i+1]), Sampler(temperature=.9, guidance=2., style_guidance=None if s is None else 1.5), seed=4+i)
            assert torch.equal(alone[0], together[i])

def test_static_addresses(said):
    "Nothing of the cache moves after the prefill, the memory's keys and values included"
    m = small(); cond,mask = m.condition(listen(said)); seq = m.layout.build(codes(t=6)); cache = m.new_cache(2, 1+seq.shape[-1])
    def where(): return [o.data_ptr() for o in (cache.k, cache.v, cache.see, cache.cond_see, *(x for l in cache.cross.values() for x in l))]
    with torch.no_grad():
        m.prefill(seq[...,:1], cond, mask, cache); before = where()
        for j in range(1, 5): m.step(seq[...,j], torch.tensor([j]), cache)
    assert where()==before and len(cache.cross)==2

# numbers
def test_as_large_as_model_a():
    n = lambda m: sum(p.numel() for p in m.parameters())
    assert abs(n(B.MusicB())/n(MusicA())-1)<.05

@pytest.mark.parametrize('layout', ['flat','delay'])
def test_loss_at_init(layout):
    m = B.MusicB(B.music_b_tiny(layout=layout, tied=False, scale=1.)).eval()
    with torch.no_grad(): assert abs(m.loss(dict(codes=codes(2, 20)))['loss'].item()-math.log(2048))<.1

def test_one_batch_by_heart(said):
    torch.manual_seed(0)
    m,batch,losses = B.MusicB(B.music_b_tiny(n_layers=1)),listen(said)|dict(codes=codes(2, 8)),[]
    opt = torch.optim.AdamW(m.parameters(), 3e-3)
    for _ in range(40): l = m.loss(batch)['loss']; opt.zero_grad(); l.backward(); opt.step(); losses.append(l.item())
    assert losses[-1]<losses[0]/5

def test_gradients_reach_the_model_only(mel, store):
    encoder = hub.load('t5-tiny')
    m = B.build_music_b('tiny', mel, encoder).train()
    m.loss(B.FusionData(store, encoder, 20, 100, prompt=(50,60)).batch(range(4), np.random.default_rng(0)))['loss'].backward()
    assert all(p.grad is not None and p.grad.abs().sum()>0 for p in m.parameters())
    assert all(p.grad is None for part in m.parts.values() for p in part.parameters()) and not any(p.requires_grad for p in encoder.parameters())
    assert not {id(p) for part in m.parts.values() for p in part.parameters()} & {id(p) for p in m.parameters()}

def test_positions_of_crops(said):
    "Codes that begin at frame 7 have the positions that they have in the whole"
    m = small(); cond,mask = m.fuse(*said)
    for k in ('flat','delay'):
        m = small(layout=k)
        with torch.no_grad(): assert (m.hidden(codes(), cond, mask, 7)-m.hidden(codes(), cond, mask)).abs().max()>1e-3
        at = 7*m.layout.period
        with torch.no_grad():
            moved = m.pos.clone(); m.pos = m.pos.roll(-at, 0)
            shifted = m.hidden(codes(), cond, mask); m.pos = moved
            close(shifted, m.hidden(codes(), cond, mask, 7), 1e-5)

# data
def clip(i, sections=2, seconds=2.):
    from soundlm.music.corpus import SynthCaps
    c = SynthCaps('train')[i]
    wavs = [torch.randn(1, int(seconds*32000), generator=gen(10*i+s))*.1 for s in range(sections)]
    return dict(id=c.id, split=c.split, caption=c.caption, attributes=c.attributes, sample_rate=32000, sections=wavs)

@pytest.fixture(scope='module')
def store(mel, tmp_path_factory):
    "Five clips: four with two sections, the last with one"
    from soundlm.tokens import TokenStore, tokenize
    out = tmp_path_factory.mktemp('tokens')/'train'
    tokenize([clip(i, 1 if i==4 else 2) for i in range(5)], mel, out)
    return TokenStore.load(out, mel)

def test_shares(store, encoder):
    "Over 2,000 rows; intervals of four standard deviations"
    d = B.FusionData(store, encoder, 20, 100, drop=(.1,.2,.5), prompt=(50,60)); g,n = np.random.default_rng(0),np.zeros((2,2))
    for _ in range(25):
        o = d.batch(g.integers(0, 8, 80), g) # rows with a sibling
        for a,b in zip(o['text_mask'].any(1).tolist(), o['prompt_mask'].tolist()): n[int(a),int(b)] += 1
    want = np.array([[.1+.9*.2*.5, .9*.2*.5],[.9*.8*.5, .9*.8*.5]])
    assert (abs(n/2000-want)<4*np.sqrt(want*(1-want)/2000)).all()

def test_nothing_is_dropped_unless_asked(store, encoder):
    o = B.FusionData(store, encoder, 20, 100, prompt=(50,60)).batch(range(9), np.random.default_rng(0))
    assert o['text_mask'].any(1).all() and o['prompt_mask'].tolist()==[True]*8+[False] # the last has no sibling

def test_prompts_come_from_the_other_section(store, encoder):
    d,g = B.FusionData(store, encoder, 20, 100, prompt=(50,100)),np.random.default_rng(0)
    for i in range(8):
        j = d.other(i, g)
        assert j!=i and store.row(j)['id']==store.row(i)['id']
    assert d.other(8, g) is None # it has no sibling
    o = B.FusionData(store, encoder, 20, 100, prompt=(100,100)).batch([0,3,8], g)
    for row,j in zip(o['prompt'], (1,2)): assert torch.equal(row, store.codes(j))
    eq(o['prompt_mask'].tolist(), [True,True,False])

def test_prompt_lengths(store, encoder):
    d = B.FusionData(store, encoder, 20, 100, prompt=(50,250)); g = np.random.default_rng(0)
    n = [d.batch([0,1], g)['prompt'].shape[-1] for _ in range(60)]
    assert min(n)>=50 and max(n)==100 and len(set(n))>5 # no longer than the clips
    a,b = (d.batch([0,1], np.random.default_rng(3)) for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in ('codes','prompt','text_mask','prompt_mask'))

# what a user gives
def noise(seconds, rate=32000, level=.1): return torch.randn(1, int(seconds*rate), generator=gen())*level

@pytest.fixture(scope='module')
def model(encoder, mel):
    m = small(prompt_frames=250); m.parts = dict(encoder=encoder, codec=mel)
    return m

def test_style_codes(model, mel):
    eq(model.style_codes(noise(1), 32000).shape, (1,4,50))
    eq(model.style_codes(noise(1, 44100), 44100).shape, (1,4,50))
    assert torch.equal(model.style_codes(noise(3), 32000), mel.encode(noise(3)[None]))
    with pytest.warns(SoundlmWarning, match='has 7.0: the rest is cropped'): long = model.style_codes(noise(7), 32000)
    assert torch.equal(long, mel.encode(noise(7)[None,:,:160000])[...,:250])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        eq(model.style_codes(noise(5), 32000).shape, (1,4,250))

@pytest.mark.parametrize('wav,why', [(noise(.9), '0.90 s'), (torch.zeros(1,64000), 'silent'), (noise(2)*1e-4, 'silent'), (torch.full((1,64000), math.nan), 'NaN'),
    (torch.zeros(1,0), '0.00 s'), (noise(2).expand(2,-1), '1, samples')])
def test_style_faults(model, wav, why):
    with pytest.raises(AudioError, match=why): model.style_codes(wav, 32000)

def test_silence_in_front_is_silence(model):
    "What is cropped away does not count"
    with pytest.warns(SoundlmWarning), pytest.raises(AudioError, match='silent'): model.style_codes(torch.cat([torch.zeros(1,160000), noise(3)], 1), 32000)

@pytest.mark.parametrize('kw,why', [(dict(style=codes(3, 60)), '1 or 2 rows'), (dict(style=codes(1, 251)), '1 to 250 frames'), (dict(style=codes(1, 60)[:,:3]), '4 codebooks'),
    (dict(style=codes(1, 60)+2048), 'expected 0…2047'), (dict(style=codes(1, 60)[0]), 'shape'), (dict(begin=codes(1, 50)), 'less than the 1 s'),
    (dict(begin=codes(3, 20)), '3 beginnings'), (dict(begin=codes(1, 20)+2048), 'expected 0 to 2047'), (dict(begin=codes(1, 0)), 'at least 1 frame'),
    (dict(begin=codes(1, 20)[:,:3]), '4 codebooks')])
def test_codes_that_do_not_fit(model, kw, why):
    with pytest.raises(SoundlmError, match=why): model.music(['jazz','blues'], 1., **kw)

@pytest.mark.parametrize('prompts', ['jazz', [''], ['  '], [3], []])
def test_prompts_that_are_none(model, prompts):
    with pytest.raises(SoundlmError): model.music(prompts, 1.)

def test_lengths_that_cannot_be(model):
    for s in (0, -1, 3.1, math.nan):
        with pytest.raises(SoundlmError, match='seconds'): model.music(['jazz'], s)

def test_model_without_ears(encoder, mel):
    m = sibling(); m.parts = dict(encoder=encoder, codec=mel)
    for f in (lambda: m.style_codes(noise(2), 32000), lambda: m.music(['jazz'], 1., style=codes(1, 60)), lambda: m.fuse(None, None, codes(1, 60))):
        with pytest.raises(SoundlmError, match='reads no audio prompt'): f()

def test_continuation_keeps_what_was_given(model):
    kept = codes(1, 20)
    for style in (None, codes(1, 60, 1)):
        full = model.write(30, *model.conditions(['jazz','blues'], style), Sampler(temperature=.9), begin=kept.expand(2,-1,-1))
        assert torch.equal(full[...,:20], kept.expand(2,-1,-1)) and not torch.equal(full[0], full[1])
    eq(model.music(['jazz','blues'], .6, begin=kept).shape, (2,1,19200))
    eq(model.music(['jazz'], .6, begin=kept, style=codes(1, 60)).shape, (1,1,19200))

def test_seeds(model):
    a,b,c = (model.music(['jazz'], .3, seed=s, style=codes(1, 60)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.isfinite(a).all() and a.abs().max()<=.95+1e-6

# files
def test_round_trip(model, tmp_path):
    model.save(tmp_path/'m', 'card')
    again = hub.load(str(tmp_path/'m'))
    assert again.config==model.config and not again.training and again.sha==hub.weights_sha(tmp_path/'m')
    assert all(torch.equal(v, model.state_dict()[k].half().float()) for k,v in again.state_dict().items())
    assert {k: (p.name, p.sha) for k,p in again.parts.items()}=={k: (p.name, p.sha) for k,p in model.parts.items()}
    eq((tmp_path/'m'/'README.md').read_text(), 'card')

def test_files_that_do_not_fit(model, tmp_path):
    d = tmp_path/'m'; model.save(d, 'card'); config = json.loads((d/'config.json').read_text())
    write = lambda **kw: (d/'config.json').write_text(json.dumps({k:v for k,v in (config|kw).items() if v!='gone'}))
    write(n_heads='gone')
    with pytest.raises(HubError, match='n_heads'): hub.load(str(d))
    write(n_layers=3)
    with pytest.raises(HubError, match='do not fit'): hub.load(str(d))
    write(parts=config['parts']|dict(codec=dict(name='mel_32khz', sha='0'*12)))
    with pytest.raises(HubError, match='0{12}'): hub.load(str(d))
    write(); f = d/'model.safetensors'; f.write_bytes(f.read_bytes()[:-1000])
    with pytest.raises(HubError): hub.load(str(d))

def test_another_codec_is_refused(model, codec, tmp_path):
    model.save(tmp_path/'m', 'card')
    with pytest.raises(HubError, match='mel_32khz'): hub.load(str(tmp_path/'m'), parts=dict(codec=codec))

def test_parts_follow_the_model(published):
    "A MusicGen's T5 and EnCodec go where it goes, and keep fp32"
    m = hub.load(str(published)).to(torch.bfloat16)
    assert m.emb.weight.dtype==torch.bfloat16 and {p.dtype for part in m.parts.values() for p in part.parameters()}=={torch.float32}

def test_card_has_its_numbers(model):
    from soundlm.train import TrainResult
    run = TrainResult(None, None, 3.25, [], 60., 1000, 7, 0)
    text = B.music_b_card(model, [run, run], [dict(what='style', share=.5)])
    for o in ('7 + 7', '2,000', '3.250 nats', '2 min', model.codec.sha, 'up to 3 s at a time', '1 to 5 s of sound'): assert o in text

def test_stages(monkeypatch, store, mel, tmp_path):
    "The whole recipe in four steps; what the caller asks for holds for every stage"
    monkeypatch.setattr(B, 'tiers', dict(tiny=lambda **kw: B.music_b_tiny(n_layers=1, **kw)))
    m,runs = B.train_music_b(tmp_path/'run', tokens=store_path(store, mel, tmp_path), short=[dict(frames=10, steps=2, batch_size=2)], steps=2, batch_size=2, val_every=2, val_batches=1)
    eq([r.steps for r in runs], [2,2])
    assert m.weights==(3.,1.5,.7,.5) and not m.training and set(m.parts)=={'codec','encoder'}
    with pytest.raises(SoundlmError, match='tier'): B.build_music_b('huge', mel, m.encoder)

def store_path(store, mel, tmp_path):
    from soundlm.tokens import tokenize
    for s,n in (('train',3), ('valid',2)): tokenize([dict(clip(i), split=s) for i in range(n)], mel, tmp_path/'tokens'/s)
    return tmp_path/'tokens'
