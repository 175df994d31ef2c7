"What learns and what does not, where the targets lie, what is never read, and a configuration in a file"
import copy
from dataclasses import replace

import pytest, torch
from hypothesis import given, settings, strategies as st

from soundlm import hub
from soundlm.core import SoundlmError, SoundlmWarning, TokenError
from soundlm.omni.corpus import digits
from soundlm.omni.dataset import Buckets
from soundlm.projector.adapter import count, projectors
from soundlm.projector.decoder import Conditioning, OmniDecoder, conditioning, mel_scales, soft_mel, weights_hash
from soundlm.projector.features import FeatureCache, load_llm
from soundlm.projector import train as T
from soundlm.sample import Sampler
from soundlm.tokens import TokenStore, tokenize
from soundlm.train import read_checkpoint

small = dict(data=('espeak',), clips=24, align=4, steps=4, val_every=2, log_every=1, positions=900, ema=0., precision='32-true', device='cpu', logger='csv')

@pytest.fixture(scope='module')
def voice(): return OmniDecoder(hub.load('omni'))

@pytest.fixture(scope='module')
def llm(): return load_llm('llama-tiny')

@pytest.fixture(scope='module')
def tokens(voice, tmp_path_factory):
    top = tmp_path_factory.mktemp('tokens')
    return [[TokenStore.load(tokenize(part, voice.codec, top/name), voice.codec)] for name, part in zip(('train', 'valid'), T.corpora('espeak', 24))]

@pytest.fixture(scope='module')
def states(tmp_path_factory): return tmp_path_factory.mktemp('states')

def lessons(llm, voice, tokens, states, layer=-1):
    cache = FeatureCache(llm, states/str(layer), layer='all' if layer == 'mix' else layer)
    return tuple(T.Lessons(s, cache, voice) for s in tokens)

# the decoder
def own(voice, texts, voices): return conditioning([voice.text_vectors(t)[0] for t in texts], voices)

def test_another_width_is_named(voice):
    wide = conditioning([torch.zeros(3, 64)], ['george'])
    for f in (voice.write, lambda c: voice.loss(c, [torch.zeros(7)]), voice.prompt, lambda c: list(voice.stream(c))):
        with pytest.raises(SoundlmError, match='width 64, expected 160'): f(wide)

def test_refused_by_the_decoder(voice):
    c = own(voice, ['one'], ['george'])
    with pytest.raises(SoundlmError, match='voice'): voice.write(replace(c, voices=('nobody',)))
    with pytest.raises(TokenError): voice.loss(c, [torch.zeros(7, dtype=torch.long)])
    with pytest.raises(SoundlmError, match='context'): voice.loss(c, [voice.codes([[1]*200, [1]*400, [1]*800])])
    with pytest.raises(SoundlmError, match='expected 1'): list(voice.stream(own(voice, ['one', 'two'], ['george', 'george'])))
    with pytest.raises(SoundlmError): voice.text_vectors('')
    with pytest.raises(SoundlmError, match='slot weights'): OmniDecoder(voice.lm, slot_weights=(1, 2))

def test_the_other_half_of_a_batch_changes_nothing(voice):
    "Rows of other lengths stand beside a row: its ids stay"
    texts, voices = ['seven', 'one two three four', 'nine nine'], ['george', 'anna', 'lucas']
    s = Sampler(temperature=0)
    together = voice.write(own(voice, texts, voices), 8, s)
    for i, t in enumerate(texts): assert torch.equal(voice.write(own(voice, [t], [voices[i]]), 8, s)[0], together[i])

def test_limits_of_rows(voice):
    rows = voice.write(own(voice, ['one two three four five', 'one two three four five'], ['george', 'anna']), [3, 9], Sampler(temperature=0))
    assert len(rows[0]) <= 3*voice.lm.period and len(rows[1]) <= 9*voice.lm.period

def test_a_row_of_a_store_and_a_dict_as_voice(voice):
    row = dict(speaker='anna', language='en', attributes=dict(rate='slow', pitch='normal', style='neutral'))
    assert voice.head_ids(row) == [voice.lm.markers['speak'], *voice.lm.tag_ids('anna', rate='slow')]
    assert voice.head_ids('anna') == [voice.lm.markers['speak'], *voice.lm.tag_ids('anna')]

def test_hash_sees_buffers_and_parameters():
    m = torch.nn.BatchNorm1d(2)
    before = weights_hash(m)
    m.running_mean[0] = 1.
    assert weights_hash(m) != before

def test_soft_path_is_differentiable(voice):
    c = own(voice, ['three'], ['george'])
    leaf = c.vectors.clone().requires_grad_()
    soft, hard = voice.probabilities(replace(c, vectors=leaf), [voice.codes([[5]*3, [6]*6, [7]*12])])
    assert [p.shape for p in soft] == [(1, 3, 4096), (1, 6, 4096), (1, 12, 4096)] and [h[0].tolist() for h in hard] == [[5]*3, [6]*6, [7]*12]
    for p in soft: torch.testing.assert_close(p.sum(-1), torch.ones_like(p.sum(-1)))
    sure = [torch.nn.functional.one_hot(h, 4096).float() for h in hard]
    mel_scales(soft_mel(voice.codec, soft), soft_mel(voice.codec, sure)).backward()
    assert leaf.grad.abs().sum() > 0

# what learns
def test_only_the_projector_learns(llm, voice, tokens, states, tmp_path):
    was = llm.weights_hash(), voice.weights_hash()
    data = lessons(llm, voice, tokens, states)
    start = T.start_projector(T.ProjectorConfig(**small), llm.dim, llm.n_layers, voice)
    projector, run = T.train_projector(T.ProjectorConfig(**small), tmp_path/'run', llm=llm, decoder=voice, lessons=data, save=False)
    assert (llm.weights_hash(), voice.weights_hash()) == was
    assert all(p.grad is None and not p.requires_grad for m in (llm.model, voice.module) for p in m.parameters())
    assert weights_hash(projector) != weights_hash(start)
    ck = read_checkpoint(run.last)
    assert {k.split('.')[1] for k in ck['state_dict']} == {'projector'}
    assert sum(v['exp_avg'].numel() for v in ck['optimizer_states'][0]['state'].values()) == count(projector)

def test_resume_is_exact(llm, voice, tokens, states, tmp_path):
    data = lessons(llm, voice, tokens, states)
    whole, _ = T.train_projector(T.ProjectorConfig(**small), tmp_path/'whole', llm=llm, decoder=voice, lessons=data, save=False)
    class Stop(Exception): pass
    def stopped(step):
        "The same run, broken off after a validation"
        calls = [0]
        class Broken(T.Lessons):
            def batch(self, indices, g=None):
                calls[0] += 1
                if calls[0] > step: raise Stop
                return super().batch(indices, g)
        return Broken(tokens[0], data[0].features, voice)
    with pytest.raises(Stop): T.train_projector(T.ProjectorConfig(**small), tmp_path/'half', llm=llm, decoder=voice, lessons=(stopped(3), data[1]), save=False)
    again, run = T.train_projector(T.ProjectorConfig(**small), tmp_path/'half', 'auto', llm, voice, data, save=False)
    assert run.steps == 4
    for a, b in zip(whole.state_dict().values(), again.state_dict().values()): assert torch.equal(a, b)

@pytest.mark.parametrize('kind', projectors)
@pytest.mark.parametrize('layer', (0, 'mix'))
def test_every_variant_trains(kind, layer, llm, voice, tokens, states, tmp_path):
    c = T.ProjectorConfig(**small | dict(kind=kind, layer=layer, steps=2, align=20))
    projector, run = T.train_projector(c, tmp_path, llm=llm, decoder=voice, lessons=lessons(llm, voice, tokens, states, layer), save=False)
    assert run.steps == 2 and projector.config['kind'] == kind
    # vectors begin at the size of the voice's own words
    fresh = T.start_projector(c, llm.dim, llm.n_layers, voice)
    x, cond = T.ProjectorTask(fresh, voice, c).project(lessons(llm, voice, tokens, states, layer)[0].batch(range(4)))
    rms = lambda v: float(v.square().mean().sqrt())
    assert .5 < rms(cond.vectors[cond.mask])/rms(x.own[x.own_mask]) < 2

def test_lora_leaves_the_weights_and_all_changes_them(llm, voice, tokens, states, tmp_path):
    data = lessons(llm, voice, tokens, states)
    for how in ('lora', 'all'):
        other = OmniDecoder(copy.deepcopy(voice.lm))
        c = T.ProjectorConfig(**small | dict(train_decoder=how, lora_rank=2, lr=1e-2, align=0))
        T.train_projector(c, tmp_path/how, llm=llm, decoder=other, lessons=tuple(T.Lessons(s, l.features, other) for s, l in zip(tokens, data)), save=False)
        old = voice.lm.trunk.blocks[0].attn.qkv.weight
        new = other.lm.trunk.blocks[0].attn.qkv
        if how == 'lora':
            assert torch.equal(new.parametrizations.weight.original, old) and not torch.equal(new.weight, old)
            assert torch.equal(other.lm.emb.weight, voice.lm.emb.weight)
        else: assert not torch.equal(new.weight, old) and not torch.equal(other.lm.emb.weight, voice.lm.emb.weight)
    assert not any(p.requires_grad for p in voice.module.parameters())

def test_a_decoder_that_learnt_is_kept_and_read_back(llm, voice, tokens, states, tmp_path):
    data = lessons(llm, voice, tokens, states)
    other = OmniDecoder(copy.deepcopy(voice.lm))
    c = T.ProjectorConfig(**small | dict(train_decoder='lora', lr=1e-2, align=0))
    T.train_projector(c, tmp_path/'run', llm=llm, decoder=other, lessons=tuple(T.Lessons(s, l.features, other) for s, l in zip(tokens, data)))
    (tmp_path/'run').rename(tmp_path/'moved') # a run is one folder, wherever it lies
    found = hub.load(str(tmp_path/'moved'/'model'))
    assert found.decoder.sha == hub.weights_sha(tmp_path/'moved'/'decoder') != voice.sha
    torch.testing.assert_close(found.decoder.lm.trunk.blocks[0].attn.qkv.weight, other.lm.trunk.blocks[0].attn.qkv.weight, atol=1e-3, rtol=1e-2) # kept in fp16

def test_saved_and_loaded(llm, voice, tokens, states, tmp_path):
    data = lessons(llm, voice, tokens, states)
    projector, run = T.train_projector(T.ProjectorConfig(**small), tmp_path/'run', llm=llm, decoder=voice, lessons=data, measure=lambda m: dict(said=float(m.speak('one').abs().max())))
    found = hub.load(str(tmp_path/'run'/'model'))
    assert T.config_from_yaml(tmp_path/'run'/'config.yaml') == T.ProjectorConfig(**small)
    for a, b in zip(projector.state_dict().values(), found.projector.state_dict().values()): assert torch.equal(a.half().float(), b)
    card = (tmp_path/'run'/'model'/'README.md').read_text()
    assert f'{count(projector):,} of' in card and 'validation_nats' in card and '| said |' in card

# where the targets lie
def test_targets_of_real_tokenizers(llm, voice, tokens, states):
    "A digit is one token to both, so its target is the voice's own row; a resampler's target is always that"
    task = T.ProjectorTask(T.start_projector(T.ProjectorConfig(), llm.dim, llm.n_layers, voice), voice)
    features = llm.read(['three seven one'])
    from soundlm.projector.adapter import gather
    x = gather(features, [voice.text_vectors('three seven one')])
    assert len(features[0].ids) == 3
    torch.testing.assert_close(task.targets(x), voice.text_vectors('three seven one')[0][None])
    task.projector.kind = 'resampler'
    assert task.targets(x) is x.own

def test_distance():
    a, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [True, False, False]])
    assert float(T.distance(a, a, mask)) == 0 and abs(float(T.distance(0*a, a, mask)) - 1) < 1e-6
    b = a.clone(); b[0, 2] += 100 # padding is not looked at
    assert float(T.distance(b, a, mask)) == 0

def test_alignment_on_texts_alone(llm, voice, tokens, states):
    c, data = T.ProjectorConfig(**small | dict(align=120)), lessons(llm, voice, tokens, states)[0]
    p = T.start_projector(c, llm.dim, llm.n_layers, voice)
    far = T.distance(*(lambda x, cond: (cond.vectors, T.ProjectorTask(p, voice).targets(x), cond.mask))(*T.ProjectorTask(p, voice).project(data.batch(range(8)))))
    assert T.align_first(p, data, voice, c) < .7*float(far)

# what is read
def test_held_out_strings_are_never_read(voice, llm, states, tokens):
    held = [' '.join(digits[int(d)] for d in f'{i:03}') for i in range(1000)]
    share = sum(map(T.held_out, held))/1000
    assert .06 < share < .14 and not any(T.held_out(f'{a} {b}') for a in digits for b in digits)
    for data in lessons(llm, voice, tokens, states): assert data.texts and not any(map(T.held_out, data.texts))

def test_held_out_strings_are_left_out(voice, llm, states, tmp_path):
    said = [' '.join(digits[int(d)] for d in f'{i:03}') for i in range(40)]
    class DigitStrings(list): fingerprint = 'DigitStrings of this test'
    corpus = [dict(id=f'c{i}', text=t, wav=torch.rand(1, 4096)*.1, sample_rate=24_000, speaker='george', language='en', split='train') for i, t in enumerate(said)]
    made, yours = (TokenStore.load(tokenize(o, voice.codec, tmp_path/k), voice.codec) for k, o in dict(made=DigitStrings(corpus), yours=corpus).items())
    read = T.Lessons([made], FeatureCache(llm, states/'held'), voice).texts
    assert sorted(read) == sorted(t for t in said if not T.held_out(t)) and len(read) < 40
    assert len(T.Lessons([yours], FeatureCache(llm, states/'held'), voice)) == 40 # a user's own corpus is read whole

def test_what_cannot_be_spelled_is_left_out(voice, llm, states, tmp_path):
    rows = [dict(id=str(i), text=t, wav=torch.rand(1, 4096)*.1, sample_rate=24_000, language=l, split='train') for i, (t, l) in enumerate((('good morning', 'en'), ('5 %', 'en'), ('guten morgen', 'de'), ('', 'en')))]
    store = TokenStore.load(tokenize(rows, voice.codec, tmp_path), voice.codec)
    with pytest.warns(SoundlmWarning, match='2 clips'): data = T.Lessons([store], FeatureCache(llm, states/'odd'), voice)
    assert data.texts == ['good morning']
    with pytest.raises(SoundlmError, match='No clip is left'): T.Lessons([store], None, voice, seconds=.01)

@pytest.mark.parametrize('layout', ('ljspeech', 'librispeech', 'common_voice'))
def test_folders_of_read_speech(layout, tmp_path, voice, llm, states):
    import soundfile as sf, numpy as np
    texts, wave = ['good morning anna', 'the weather is good', 'stop the music'], (np.sin(np.arange(24000)/20)*.1).astype('float32')
    top = tmp_path/layout
    if layout == 'ljspeech':
        (top/'wavs').mkdir(parents=True)
        (top/'metadata.csv').write_text('\n'.join(f'LJ{i}|{t}|{t}' for i, t in enumerate(texts)))
        for i in range(3): sf.write(top/'wavs'/f'LJ{i}.wav', wave, 24000)
    if layout == 'librispeech':
        for s in (12, 34):
            (top/str(s)/'5').mkdir(parents=True)
            (top/str(s)/'5'/f'{s}-5.trans.txt').write_text('\n'.join(f'{s}-5-{i:04} {t.upper()}' for i, t in enumerate(texts)))
            for i in range(3): sf.write(top/str(s)/'5'/f'{s}-5-{i:04}.flac', wave, 24000)
    if layout == 'common_voice':
        (top/'clips').mkdir(parents=True)
        (top/'train.tsv').write_text('client_id\tpath\tsentence\tlocale\n' + '\n'.join(f'c{i}\tc{i}.mp3\t{t}\ten' for i, t in enumerate(texts)) + '\n')
        for i in range(3): sf.write(top/'clips'/f'c{i}.mp3', wave, 24000)
    c = T.ProjectorConfig(data=(str(top),), clips=4)
    found = T.stores(c, voice.codec, tmp_path/'tokens')
    data = [T.Lessons(s, FeatureCache(llm, states/'folders'), voice) for s in found]
    assert set(data[0].texts) | set(data[1].texts) == set(texts) and min(map(len, data)) > 0

# numbers in a file
@settings(max_examples=30, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict(steps=st.integers(1, 10**6), lr=st.floats(1e-9, 1, allow_nan=False), chat=st.booleans(), layer=st.one_of(st.integers(-1, 40), st.just('mix')), bits=st.sampled_from([None, 4, 8]),
    kind=st.sampled_from(list(projectors)), data=st.lists(st.sampled_from(['fsdd', 'espeak', 'words', './a folder']), min_size=1, max_size=3).map(tuple), hidden=st.one_of(st.none(), st.integers(1, 4096)))))
def test_yaml_round_trip(tmp_path_factory, kw):
    c = T.ProjectorConfig(**kw)
    assert T.config_from_yaml(c.to_yaml(tmp_path_factory.mktemp('yaml')/'c.yaml')) == c

@pytest.mark.parametrize('text, said', (('stepps: 3', "Did you mean 'steps'|Did you mean steps"), ('steps: many', 'steps'), ('steps: 2.5', 'steps'), ('chat: 1', 'chat'), ('steps: true', 'steps'), ('- a', 'list'), ('a: [', 'YAML'), ('kind: nothing', 'kind'),
    ('ce: 0\ndistil: 0', 'above'), ('lr: -1', 'lr'), ('data: []', 'data'), ('positions: 0', 'positions'), ('align: -1', 'align'), ('train_decoder: some', 'train_decoder'), ('bits: 5', 'bits')))
def test_bad_yaml(text, said, tmp_path):
    (tmp_path/'c.yaml').write_text(text)
    with pytest.raises(SoundlmError, match=said): T.config_from_yaml(tmp_path/'c.yaml')

@pytest.mark.parametrize('kw, said', ((dict(activation='geluu'), 'Did you mean gelu'), (dict(layer=2.5), 'layer'), (dict(layer=-2), 'layer'), (dict(hidden=-5), 'hidden'), (dict(hidden='many'), 'hidden'), (dict(ce=float('nan')), 'ce='), (dict(data=(3,)), 'data'),
    (dict(decoder='qwen3-tts', perceptual=1.), 'soft path'), (dict(decoder='Qwen/Qwen3-TTS-12Hz-1.7B-Base', train_decoder='all'), 'own tools')))
def test_numbers_are_refused_before_anything_is_made(kw, said):
    with pytest.raises(SoundlmError, match=said): T.ProjectorConfig(**kw)

def test_a_run_goes_on_with_its_own_numbers(llm, voice, tokens, states, tmp_path):
    data = lessons(llm, voice, tokens, states)
    T.train_projector(T.ProjectorConfig(**small), tmp_path, llm=llm, decoder=voice, lessons=data, save=False)
    for change in (dict(lr=.5), dict(align=5), dict(activation='none'), dict(perceptual=1.)):
        with pytest.raises(SoundlmError, match=f'Cannot go on with {next(iter(change))}='): T.train_projector(T.ProjectorConfig(**small | change), tmp_path, 'auto', llm, voice, data, save=False)
    assert T.config_from_yaml(tmp_path/'config.yaml') == T.ProjectorConfig(**small)

def test_nothing_of_the_codec_learns_by_listening(llm, voice, tokens, states, tmp_path):
    before = voice.weights_hash()
    T.train_projector(T.ProjectorConfig(**small | dict(perceptual=1.)), tmp_path, llm=llm, decoder=voice, lessons=lessons(llm, voice, tokens, states), save=False)
    assert voice.weights_hash() == before and all(p.grad is None and not p.requires_grad for p in voice.codec.parameters())
    voice.codec.mean[0] += 1 # the hash covers the codec
    try: assert voice.weights_hash() != before
    finally: voice.codec.mean[0] -= 1

def test_nothing_of_a_snac_learns_by_listening():
    "The soft path through a convolutional codec: gradients reach the probabilities and stop there"
    from soundlm.omni.trainer import build
    from soundlm.omni.tokenizer import beside
    from soundlm.omni.trainer import omni_tiny
    text, codec = hub.load('bpe-tiny'), hub.load('snac_24khz-tiny')
    d = OmniDecoder(build(text, beside(text, codec), omni_tiny(n_layers=1)))
    c = own(d, ['three'], [None])
    leaf = c.vectors.clone().requires_grad_()
    soft, hard = d.probabilities(replace(c, vectors=leaf), [d.codes([[5]*8, [6]*16, [7]*32])])
    mel_scales(soft_mel(codec, soft), soft_mel(codec, [torch.nn.functional.one_hot(h, 4096).float() for h in hard])).backward()
    assert leaf.grad.abs().sum() > 0 and all(p.grad is None for m in (codec.model, d.module) for p in m.parameters())

def test_missing_yaml(tmp_path):
    with pytest.raises(SoundlmError, match='Cannot read'): T.config_from_yaml(tmp_path/'none.yaml')

def test_unknown_data_and_decoder():
    with pytest.raises(SoundlmError, match='Did you mean'): T.corpora('espaek')
    with pytest.raises(SoundlmError): T.open_decoder('omnii')

def test_the_llm_leaves_before_the_voice_enters(voice, tokens, tmp_path):
    "Phase one on a card: everything is read, then the model is gone, and training needs it no more"
    llm = load_llm('llama-tiny')
    data = tuple(T.Lessons(s, FeatureCache(llm, tmp_path/'states'), voice) for s in tokens)
    facts = T.leave(llm, *data)
    assert llm.model is None and (facts.name, facts.dim, facts.size) == ('llama-tiny', 128, 574_336)
    T.train_projector(T.ProjectorConfig(**small), tmp_path/'run', llm=facts, decoder=voice, lessons=data)
    assert hub.load(str(tmp_path/'run'/'model')).speak('one').abs().max() > 0
