"Run by test_projector_qwen3tts.py in a process with qwen-tts: our decoder against the package's own classes, tiny and random"
import logging
import pytest, torch, torch.nn.functional as F
from qwen3tts import datasets_beside_an_older_hub, qwen_classes, texts, tiny_qwen
from soundlm.core import SoundlmError, TokenError
from soundlm.projector.adapter import AudioProjector
from soundlm.projector.decoder import conditioning
from soundlm.projector.qwen3tts import Qwen3TTSDecoder, load_qwen3tts, prefix, schedule
from soundlm.sample import Sampler

greedy = Sampler(temperature=0)
stock_greedy = dict(do_sample=False, subtalker_dosample=False)
spoken = lambda s: f'<|im_start|>assistant\n{s}<|im_end|>\n<|im_start|>assistant\n'

@pytest.fixture(scope='module')
def voice():
    logging.getLogger('transformers').setLevel(logging.ERROR)
    model, tokenizer = tiny_qwen()
    res = Qwen3TTSDecoder(model, tokenizer)
    g = torch.Generator().manual_seed(1)
    for name, hz in dict(cara=180, dave=95).items():
        t = torch.arange(24000)/24000
        res.add_voice(name, (torch.sin(2*torch.pi*hz*t) + .1*torch.randn(24000, generator=g))[None], 24000)
        res.speakers[name] = F.normalize(torch.randn(res.dim, generator=g), dim=0)*3 # a random encoder hears little: vectors that differ
    return res

def stock(voice, said, voices=None, languages=None, **kw):
    "The package's own `generate`, from text, greedily: list of (t,k)"
    ids = [voice.tokenizer(spoken(s), return_tensors='pt')['input_ids'] for s in said]
    names, prompt = voices or [None]*len(said), None
    if any(n in voice.speakers for n in names):
        assert all(n in voice.speakers for n in names)
        prompt = dict(ref_code=[None]*len(names), ref_spk_embedding=[voice.speakers[n] for n in names], x_vector_only_mode=[True]*len(names), icl_mode=[False]*len(names))
        names = None
    return voice.model.generate(input_ids=ids, languages=languages or ['auto']*len(said), speakers=names, voice_clone_prompt=prompt, **(stock_greedy | kw))[0]

def own(voice, said, voices=()): return conditioning([voice.text_vectors(s)[0] for s in said], voices)

def test_fixture_says_different_things(voice):
    got = stock(voice, texts, max_new_tokens=14)
    assert len({tuple(o.flatten().tolist()) for o in got}) == len(texts)
    assert all(o[:, i].unique().numel() > 3 for o in got for i in range(voice.books))

def test_text_alone_is_what_stands_in_the_role(voice):
    for s in (*texts, '"Hi", 5!', "été ☃ it's", 'a  b\n c', '☃'):
        ids = voice.tokenizer(spoken(s))['input_ids']
        assert ids[:3] == voice.role and ids[3:-5] == voice.tokenizer(s)['input_ids']
        vectors, spans = voice.text_vectors(f'  {s} ')
        assert torch.equal(vectors, voice.said(ids[3:-5])) and len(spans) == len(vectors) and vectors.shape[1] == voice.dim
        assert {i for a, b in spans for i in range(a, b)} == set(range(len(s) + 3)) and all(a < b for a, b in spans)
        assert spans[0][0] == 0 and all(a[0] <= b[0] for a, b in zip(spans, spans[1:]))

@pytest.mark.parametrize('penalty', [1., 1.05])
def test_stock_vectors_give_stock_codes(voice, penalty):
    for s in texts[:3] if penalty == 1 else texts[3:]:
        want = stock(voice, [s], max_new_tokens=14, repetition_penalty=penalty)[0]
        got, = voice.write(own(voice, [s]), frames=13, sampler=greedy, repetition_penalty=penalty)
        assert torch.equal(got.T, want), s
    wants = stock(voice, texts, max_new_tokens=14, repetition_penalty=penalty)
    for got, want in zip(voice.write(own(voice, texts), frames=13, sampler=greedy, repetition_penalty=penalty), wants): assert torch.equal(got.T, want)

@pytest.mark.parametrize('names,language', [(['cara', 'dave'], 'auto'), (['anna', 'bryn'], 'auto'), (['Anna', None], 'english'), (['bryn', 'anna'], 'english')])
def test_stock_codes_with_speakers_and_languages(voice, names, language):
    want = stock(voice, texts[:2], names, [language]*2, max_new_tokens=10)
    rows = [dict(speaker=n, language=language) for n in names]
    got = voice.write(own(voice, texts[:2], rows), frames=9, sampler=greedy)
    assert all(torch.equal(g.T, w) for g, w in zip(got, want))
    plain = stock(voice, texts[:2], max_new_tokens=10)
    assert not torch.equal(plain[0], want[0]), 'the voice must be heard'

def test_sampled_codes_are_the_packages_too(voice):
    kw = dict(do_sample=True, subtalker_dosample=True, temperature=.8, top_k=20, subtalker_temperature=.8, subtalker_top_k=20, max_new_tokens=10)
    torch.manual_seed(7)
    want = stock(voice, texts[:2], **kw)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    got = voice.write(own(voice, texts[:2]), frames=9, sampler=Sampler(temperature=.8, top_k=20), seed=7)
    assert all(torch.equal(g.T, w) for g, w in zip(got, want))
    assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers are left alone"

# Label alignment. The three mistakes of public fine-tuning code each move labels against states; the stock model's own greedy codes are likeliest where nothing is moved.

def forced(voice, said, codes):
    b = voice.inputs(own(voice, said), codes)
    h = voice.talker.model(inputs_embeds=b['embeds'], use_cache=False).last_hidden_state
    return b, h

shifts = (-2, -1, 0, 1, 2)
def best(costs): return min(costs, key=costs.get)

@pytest.fixture(scope='module')
def uttered(voice):
    "What the stock model says greedily, without the penalty that moves its choice"
    return [o.T for o in stock(voice, texts, max_new_tokens=14, repetition_penalty=1.)]

def test_codebook_0_is_labelled_where_it_was_drawn(voice, uttered):
    b, h = forced(voice, texts, uttered)
    z, costs = voice.first_logits(h), {}
    for s in shifts: # s=1: labels shifted twice
        nats = [F.cross_entropy(z[i, p], c[0, j + s]) for i, c in enumerate(uttered) for j in range(2, c.shape[1] - 2) for p in [int((b['labels'][i] >= 0).nonzero()[0]) + j]]
        costs[s] = float(torch.stack(nats).mean())
    assert best(costs) == 0 and sorted(costs.values())[1] > costs[0] + 1, costs
    on = b['labels'] >= 0
    y = b['labels'][on]
    said = y != voice.config.codec_eos_token_id # the end is ours to add: these clips were cut
    assert torch.equal(z[on].argmax(-1)[said], y[said])
    out = voice.loss(own(voice, texts), uttered)
    assert float(out['first']) == pytest.approx(float(F.cross_entropy(z[on], y)), rel=1e-5) and float(out['first_acc']) >= said.float().mean() - 1e-6

def test_sub_talker_hears_the_state_before_its_frame(voice, uttered):
    b, h = forced(voice, texts, uttered)
    rows, at, costs = b['at'][:, 0], b['at'][:, 1], {}
    for s in shifts: # s=1: the state that has already heard the frame, which leaks it
        ok = torch.tensor([0 <= p + s < int((b['labels'][i] != -100).nonzero()[-1]) + 1 for i, p in zip(rows.tolist(), at.tolist())])
        z = voice.rest_logits(h[rows[ok], at[ok] + s], b['codes'][ok])
        costs[s] = float(F.cross_entropy(z.flatten(0, 1), b['codes'][ok][:, 1:].flatten()))
    assert best(costs) == 0 and sorted(costs.values())[1] > costs[0] + .5, costs
    z = voice.rest_logits(h[rows, at], b['codes'])
    assert torch.equal(z.argmax(-1), b['codes'][:, 1:])

def test_sub_talker_codebooks_are_not_shifted(voice, uttered):
    b, h = forced(voice, texts, uttered)
    z, costs = voice.rest_logits(h[b['at'][:, 0], b['at'][:, 1]], b['codes']), {}
    n = voice.books - 1
    for s in shifts: # s=1: what a loss that shifts by itself makes of codebooks
        i = [k for k in range(n) if 0 <= k + s < n]
        costs[s] = float(F.cross_entropy(z[:, i].flatten(0, 1), b['codes'][:, 1:][:, [k + s for k in i]].flatten()))
    assert best(costs) == 0 and sorted(costs.values())[1] > costs[0] + 1, costs
    assert F.cross_entropy(z.flatten(0, 1), b['codes'][:, 1:].flatten()) == pytest.approx(float(voice.loss(own(voice, texts), uttered)['rest']), rel=1e-5)

def test_packages_own_loss_shifts_codebooks(voice, uttered):
    "Why its `forward_sub_talker_finetune` is not called: its logits are ours, its loss compares them with the next codebook"
    b, h = forced(voice, texts, uttered)
    before = h[b['at'][:, 0], b['at'][:, 1]]
    logits, loss = voice.talker.forward_sub_talker_finetune(b['codes'], before)
    ours = voice.rest_logits(before, b['codes'])
    assert torch.allclose(logits, ours, atol=1e-4)
    y = b['codes'][:, 1:]
    assert float(loss) == pytest.approx(float(F.cross_entropy(ours[:, :-1].flatten(0, 1), y[:, 1:].flatten())), rel=1e-4)
    assert float(loss) > float(F.cross_entropy(ours.flatten(0, 1), y.flatten())) + 1

def test_the_end_is_a_label(voice, uttered):
    b, _ = forced(voice, texts[:1], uttered[:1])
    y = b['labels'][0]
    assert int(y[-1]) == voice.config.codec_eos_token_id and (y >= 0).sum() == uttered[0].shape[1] + 1
    head = len(prefix()) - 1
    assert (y[:head] == -100).all() and torch.equal(y[head:-1], uttered[0][0])

def test_inputs_are_what_the_stock_talker_takes(voice, uttered):
    "Every embedding that the stock model feeds itself, caught on the way in, equals ours"
    seen, s = [], texts[2]
    hook = voice.talker.model.register_forward_pre_hook(lambda m, a, kw: seen.append(kw['inputs_embeds']), with_kwargs=True)
    stock(voice, [s], max_new_tokens=14, repetition_penalty=1.)
    hook.remove()
    want, got = torch.cat(seen, 1), voice.inputs(own(voice, [s]), [uttered[2]])['embeds']
    assert want.shape == got.shape and torch.allclose(want, got, atol=1e-5)
    n = len(own(voice, [s]).row(0))
    assert schedule(n, 13) == [*range(n + 1), *[-1]*(13 - n)]

def test_batches_equal_single_rows(voice, uttered):
    cut = [c[:, :n] for c, n in zip(uttered, (13, 4, 9, 1, 7))]
    names = ['cara', None, 'dave', 'anna', None]
    together, alone = voice.loss(own(voice, texts, names), cut), [voice.loss(own(voice, [t], [n]), [c]) for t, n, c in zip(texts, names, cut)]
    for k, w in dict(first=[c.shape[1] + 1 for c in cut], rest=[c.shape[1] for c in cut]).items():
        assert float(together[k]) == pytest.approx(sum(float(a[k])*n for a, n in zip(alone, w))/sum(w), rel=1e-4), k
    assert together['tokens'] == sum(a['tokens'] for a in alone) == sum(c.shape[1]*16 + 1 for c in cut)
    writes = voice.write(own(voice, texts, names), frames=9, sampler=greedy)
    for w, t, n in zip(writes, texts, names): assert torch.equal(w, voice.write(own(voice, [t], [n]), frames=9, sampler=greedy)[0])

def test_only_the_projector_learns(voice, uttered):
    before, g = voice.weights_hash(), torch.Generator().manual_seed(0)
    states = [torch.randn(len(voice.text_vectors(t)[0]), 40, generator=g) for t in texts[:2]]
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(40, voice.dim), torch.nn.LayerNorm(voice.dim), torch.nn.GELU())
    opt, losses = torch.optim.AdamW(net.parameters(), lr=1e-2), []
    for _ in range(40):
        out = voice.loss(conditioning([net(s) for s in states]), uttered[:2])
        opt.zero_grad(); out['loss'].backward(); opt.step()
        losses.append(float(out['loss'].detach()))
    assert losses[-1] < losses[0]*.8, losses
    assert all(p.grad is None and not p.requires_grad for p in voice.module.parameters()) and all(p.grad.abs().sum() > 0 for p in net.parameters())
    assert voice.weights_hash() == before
    with torch.no_grad(): voice.speech.model.decoder.pre_conv.conv.bias[0] += 1
    assert voice.weights_hash() != before
    with torch.no_grad(): voice.speech.model.decoder.pre_conv.conv.bias[0] -= 1

def test_every_vector_gets_a_gradient_and_no_later_sound_gives_one_back(voice, uttered):
    "Vector i first enters at frame i-1's input: a clip of i-1 frames has heard no more than i vectors"
    leaf = own(voice, texts[2:3]).vectors.clone().requires_grad_()
    n = leaf.shape[1]
    for t in (1, 3, n + 2):
        leaf.grad = None
        voice.loss(conditioning([leaf[0]]), [uttered[2][:, :t]])['loss'].backward()
        heard = leaf.grad[0].abs().sum(-1) > 0
        assert heard.tolist() == [i <= t for i in range(n)], t

def test_a_projector_of_the_course(voice, uttered):
    from soundlm.projector.adapter import gather
    class Read: pass
    f = Read(); f.states, f.spans = torch.randn(4, 20), [(0, 3), (3, 5), (5, 9), (9, 14)]
    vectors, mask = AudioProjector(20, voice.dim)(gather([f]))
    out = voice.loss(conditioning([vectors[0][mask[0]]]), uttered[:1])
    out['loss'].backward()
    assert set(out) >= {'loss', 'nats', 'acc', 'tokens'}

def test_sound(voice):
    codes, = voice.write(own(voice, texts[:1]), frames=12, sampler=greedy)
    wav, = voice.generate(own(voice, texts[:1]), frames=12, sampler=greedy)
    assert wav.shape == (1, codes.shape[1]*1920) and torch.equal(wav, voice.sound(codes)) and wav.std() > 1e-4
    again = voice.encode(wav, 24000)
    assert again.shape == codes.shape and again.dtype == torch.int64
    voice.loss(own(voice, texts[:1]), [again])
    assert voice.encode(wav.repeat(2, 1), 12000).shape[1] == 2*codes.shape[1]

def test_a_codec_of_the_course(voice, tmp_path):
    "What `tokenize` writes with it comes back as `loss` takes it, and is what the voice hears"
    datasets_beside_an_older_hub()
    from soundlm.tokens import TokenStore, tokenize
    c, g = voice.codec, torch.Generator().manual_seed(3)
    assert (c.sample_rate, c.frame_rate, c.codebooks, c.codebook_size, c.strides) == (24000, 12.5, 16, 64, (1,)*16) and c.frame_rate == voice.frame_rate
    wavs = [torch.randn(1, n, generator=g)*.2 for n in (9600, 9600, 15000)]
    store = TokenStore.load(tokenize([dict(id=str(i), wav=w, sample_rate=24000, text='five') for i, w in enumerate(wavs)], c, tmp_path/'s'), c)
    for i, w in enumerate(wavs):
        assert torch.equal(voice.codes(store.codes(i)), voice.encode(w, 24000)) and torch.equal(voice.codes(list(store.codes(i))), voice.codes(store.codes(i)))
    both = c.encode(torch.stack(wavs[:2]))
    assert both.shape == (2, 16, 5) and torch.equal(both[1], voice.encode(wavs[1], 24000)) and c.decode(both).shape == (2, 1, 9600)
    assert torch.allclose(c.decode(both)[1], voice.sound(both[1]), atol=1e-5)
    with pytest.raises(TokenError): voice.codes(store.codes(0)[:8])
    with pytest.raises(TokenError): c.decode(both[:, :3])
    with pytest.raises(SoundlmError): c.encode(wavs[0])
    with torch.no_grad(): voice.speech.model.decoder.pre_conv.conv.bias[0] += 1
    other = type(c)(voice.speech)
    assert other.sha != c.sha
    with torch.no_grad(): voice.speech.model.decoder.pre_conv.conv.bias[0] -= 1
    with pytest.raises(TokenError, match='load the codec of the store'): TokenStore.load(tmp_path/'s', other)

def test_rows_have_seeds_and_limits_of_their_own(voice):
    cond = own(voice, texts[:3], ['cara', None, 'anna'])
    draw = Sampler(temperature=.9, top_k=50)
    got = voice.generate(cond, frames=[3, 5, 4], sampler=draw, seeds=[7, 8, 2])
    for i, (n, s) in enumerate(((3, 7), (5, 8), (4, 2))):
        one = conditioning([cond.row(i)], [cond.voices[i]])
        assert torch.equal(got[i], voice.generate(one, frames=n, seeds=s)[0]) and got[i].shape[1] <= n*1920
        assert torch.equal(got[i], voice.sound(voice.write(one, n, draw, s)[0]))
    again = voice.generate(cond, frames=5, seeds=7)
    assert torch.equal(again[1], got[1]) and not torch.equal(again[2][:, :4*1920], got[2])
    for kw in (dict(frames=[3, 5]), dict(seeds=[1]), dict(frames=0)):
        with pytest.raises(SoundlmError, match='for 3 rows'): voice.generate(cond, **kw)

def test_voices_of_a_corpus(voice, uttered):
    "Training takes a speaker or a language that the model never met as any; who asks for one is told"
    rows = lambda *v: float(voice.loss(own(voice, texts[:1], v), uttered[:1])['loss'])
    plain, english = rows(None), rows(dict(language='english'))
    assert plain == rows('george') == rows(dict(speaker='george', language=None, attributes=dict(rate='slow'))) == rows(dict(speaker=None, language='cy'))
    assert english == rows(dict(speaker='george', language='en')) == rows(dict(language='en-GB')) != plain
    assert rows(dict(speaker='Anna', language='en')) == rows(dict(speaker='anna', language='English')) != english
    for bad, word in (('george', 'george'), (dict(language='cy'), 'cy'), (dict(language='de'), 'german|de')):
        for say in (voice.generate, lambda c: list(voice.stream(c))):
            with pytest.raises(SoundlmError, match=word): say(own(voice, texts[:1], [bad]))
    a, b = (voice.write(own(voice, texts[:1], [dict(language=o)]), frames=6, sampler=greedy)[0] for o in ('en', 'english'))
    assert torch.equal(a, b)

def test_stream_is_the_whole_in_pieces(voice):
    cond = own(voice, texts[:1], ['cara'])
    want = voice.write(cond, frames=13, sampler=greedy)[0]
    assert torch.equal(torch.stack(list(voice.each(cond, frames=13, sampler=greedy)), 1), want)
    chunks = list(voice.stream(cond, frames=13, sampler=greedy))
    assert [c.shape[1]//1920 for c in chunks] == [2, 6, 5]
    assert torch.allclose(torch.cat(chunks, 1), voice.sound(want), atol=1e-5)
    a, b = (torch.stack(list(voice.each(cond, frames=5, seed=3)), 1) for _ in range(2))
    assert torch.equal(a, b)
    n = []
    assert list(voice.stream(cond, frames=13, stop=lambda: n.append(1) or len(n) > 1)) == []

def test_it_ends_where_the_model_ends(voice):
    "With a head that wants to end, both ways of writing stop, and never before the second frame"
    w, eos = voice.talker.codec_head.weight, voice.config.codec_eos_token_id
    kept = w[eos].clone()
    try:
        cond = own(voice, texts[:1])
        h = voice.talker(**voice.prompt(cond)).past_hidden[0, 0]
        w[eos] = h*2
        want, = stock(voice, texts[:1], max_new_tokens=14)
        got, = voice.write(cond, frames=13, sampler=greedy)
        assert 1 < got.shape[1] < 13 and torch.equal(got.T, want)
        assert torch.equal(torch.stack(list(voice.each(cond, frames=13, sampler=greedy)), 1), want.T)
    finally: w[eos] = kept

def test_from_a_folder_by_the_packages_own_loader(voice, tmp_path):
    import inspect, json
    from safetensors.torch import save_file
    config = voice.model.config.to_dict()
    known = inspect.signature(type(voice.model.config.speaker_encoder_config)).parameters # `save_pretrained` writes more than this class reads
    config['speaker_encoder_config'] = {k: v for k, v in config['speaker_encoder_config'].items() if k in known}
    (tmp_path/'config.json').write_text(json.dumps(config | dict(architectures=['Qwen3TTSForConditionalGeneration'])))
    save_file({k: v.clone() for k, v in voice.model.state_dict().items()}, tmp_path/'model.safetensors', metadata=dict(format='pt'))
    voice.tokenizer.save_pretrained(tmp_path)
    (tmp_path/'generation_config.json').write_text('{}')
    voice.speech.model.save_pretrained(tmp_path/'speech_tokenizer')
    voice.speech.feature_extractor.save_pretrained(tmp_path/'speech_tokenizer')
    again = load_qwen3tts(str(tmp_path), 'cpu', language='english')
    assert len(again.sha) == len(again.codec.sha) == 12 and again.sha != again.codec.sha and again.language == 'english' and again.dim == voice.dim and again.sample_rate == 24000
    cond = own(voice, texts[:1], [dict(speaker='anna', language='english')])
    want, = voice.write(cond, frames=8, sampler=greedy)
    got, = again.write(own(again, texts[:1], ['anna']), frames=8, sampler=greedy)
    assert torch.equal(got, want) and torch.allclose(again.sound(got), voice.sound(want), atol=1e-5)
    assert load_qwen3tts(str(tmp_path), 'cpu', torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(SoundlmError, match='klingon'): load_qwen3tts(str(tmp_path), 'cpu', language='klingon')

def test_half_precision(voice, uttered):
    "Vectors stay in fp32 where they learn, and are rounded at the door"
    model, tokenizer = tiny_qwen()
    half = Qwen3TTSDecoder(model.to(torch.bfloat16), tokenizer)
    leaf = own(voice, texts[:1]).vectors.clone().requires_grad_()
    out = half.loss(conditioning([leaf[0]]), uttered[:1])
    out['loss'].backward()
    assert leaf.grad.dtype == torch.float32 and leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0
    assert float(out['loss'].detach()) == pytest.approx(float(voice.loss(own(voice, texts[:1]), uttered[:1])['loss']), rel=.2)

def test_errors(voice, uttered):
    wide = conditioning([torch.zeros(3, voice.dim + 1)])
    for run in (voice.write, voice.generate, lambda c: voice.loss(c, uttered[:1]), lambda c: list(voice.stream(c))):
        with pytest.raises(SoundlmError, match=f'width {voice.dim + 1}, expected {voice.dim}'): run(wide)
    with pytest.raises(SoundlmError, match='carra.*Did you mean cara'): voice.write(own(voice, texts[:1], ['carra']))
    with pytest.raises(SoundlmError, match='klingon'): voice.write(own(voice, texts[:1], [dict(language='klingon')]))
    for f in (voice.text_vectors, voice.spell):
        with pytest.raises(SoundlmError, match='something to say'): f('  ')
    with pytest.raises(SoundlmError, match='perceptual=0'): voice.probabilities(own(voice, texts[:1]), uttered[:1])
    with pytest.raises(SoundlmError, match='rows to stream'): list(voice.stream(own(voice, texts[:2])))
    with pytest.raises(SoundlmError, match='no guidance'): voice.write(own(voice, texts[:1]), sampler=Sampler(guidance=2))
    with pytest.raises(SoundlmError, match='one each'): voice.loss(own(voice, texts[:2]), uttered[:1])
    for bad in (uttered[0][:8], uttered[0][:, :0], uttered[0] + 64, uttered[0].T):
        with pytest.raises(TokenError): voice.loss(own(voice, texts[:1]), [bad])

# The memory plan's formulas against the package's classes, at their real size, on the meta device

def real_config():
    predictor = dict(vocab_size=2048, num_code_groups=16)
    talker = dict(vocab_size=3072, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128, num_code_groups=16, text_hidden_size=2048,
        text_vocab_size=151936, rope_scaling=dict(rope_type='default', mrope_section=[24, 20, 20], interleaved=True), codec_language_id={}, spk_id={}, code_predictor_config=predictor)
    return dict(talker_config=talker, speaker_encoder_config=dict(enc_dim=2048), tts_model_type='base')

def test_memory_plan_counts_the_packages_parts():
    from soundlm.projector import memory
    m, Config, t, Codec, _ = qwen_classes()
    with torch.device('meta'):
        model = m.Qwen3TTSForConditionalGeneration(Config(**real_config()))
        codec = t.Qwen3TTSTokenizerV2Model(Codec(encoder_config={}, decoder_config=dict(codebook_dim=512, hidden_size=512, intermediate_size=1024)))
    talker, predictor, text, speaker, both = memory.qwen3tts_parts()
    n = memory.count
    assert sum(p.params for p in (talker, predictor, text, speaker)) == n(model)
    assert predictor.params == n(model.talker.code_predictor) and speaker.params == n(model.speaker_encoder)
    assert text.params == n(model.talker.model.text_embedding) + n(model.talker.text_projection)
    assert memory.codec_decoder() == n(codec.decoder)
    assert both.params == n(codec.encoder) + n(codec.decoder) + sum(b.numel() for k, b in codec.named_buffers() if 'quantizer' in k)

def test_memory_plan_knows_what_the_package_keeps():
    "Two blocks of the real width: what autograd holds on to, fp16 as bf16"
    from dataclasses import replace
    from soundlm.projector import memory
    m, Config = qwen_classes()[:2]
    c = real_config()
    c['talker_config'] |= dict(num_hidden_layers=2, text_vocab_size=8)
    c['talker_config']['code_predictor_config']['num_hidden_layers'] = 2
    with torch.device('meta'): talker = m.Qwen3TTSForConditionalGeneration(Config(**c)).to(torch.bfloat16).requires_grad_(False).talker
    talker.to_empty(device='cpu') # whatever lies there: shapes are what counts
    for part, model, b, n in zip(memory.qwen3tts_parts(), (talker.model, talker.code_predictor.model), (1, 2), (32, 16)):
        x = torch.randn(b, n, part.width, dtype=torch.bfloat16, requires_grad=True)
        kept = memory.kept_by(lambda: model(inputs_embeds=x, use_cache=False).last_hidden_state, model.parameters())
        assert memory.kept_bytes(replace(part, layers=2, vocab=0), b*n, stock=True) == pytest.approx(kept, rel=.1)
