"Run by test_projector_infer.py in a process with qwen-tts: a Llama's states, a projector, a tiny random Qwen3-TTS"
import inspect, os
from pathlib import Path
import pytest, torch
from qwen3tts import datasets_beside_an_older_hub, texts, tiny_qwen
from soundlm import hub
from soundlm.core import SoundlmError
from soundlm.projector.adapter import make_projector
from soundlm.projector.decoder import OmniDecoder, SpeechDecoder, conditioning
from soundlm.projector.features import FrozenLM
from soundlm.projector.infer import SpokenLM
from soundlm.projector.qwen3tts import Qwen3TTSDecoder
from soundlm.sample import Sampler

greedy = Sampler(temperature=0)

@pytest.fixture(scope='module', params=['linear', 'gated', 'resampler'])
def spoken(request):
    voice = Qwen3TTSDecoder(*tiny_qwen())
    voice.sha = 'f'*12
    voice.longest = lambda text: 6 # a random model hardly ever stops
    llm = FrozenLM.from_folder(os.environ['TINY_LLM'])
    torch.manual_seed(0)
    return SpokenLM(llm, make_projector(request.param, llm.dim, voice.dim), voice)

@pytest.mark.filterwarnings('ignore:.*did not come to its end')
def test_it_speaks(spoken):
    a, b = spoken.speak(['One. And two, too!', 'three'], voice=None, seed=1)
    hop = spoken.decoder.hop
    assert spoken.script('One. And two, too!', None)[0] == ['One.', 'And two, too!'] and spoken.script('a b c', None, breath=2)[0] == ['a b', 'c']
    assert 0 < b.shape[1] <= 6*hop and a.shape[1] > b.shape[1] and a.dtype == torch.float32 and torch.isfinite(a).all()
    assert torch.equal(b, spoken.speak('three', voice=None, seed=2))

@pytest.mark.filterwarnings('ignore:.*did not come to its end')
def test_it_streams_what_it_says(spoken):
    whole = spoken.speak('three', voice=None, sampler=greedy)
    assert torch.allclose(torch.cat(list(spoken.stream('three', voice=None, sampler=greedy)), 1), whole, atol=1e-5)

def test_what_it_cannot(spoken):
    for kw, words in ((dict(voice='george'), 'george'), (dict(voice=None, rate='slow'), 'rate'), (dict(voice=None, language='elvish'), 'elvish')):
        with pytest.raises(SoundlmError, match=words): spoken.speak('one', **kw)
    with pytest.raises(SoundlmError): spoken.speak('  ', voice=None)

def test_its_files_name_the_voice(spoken, tmp_path):
    spoken.save(tmp_path/'p', '# p')
    config = hub.read_config(tmp_path/'p')
    assert config['decoder'] == dict(name='qwen3-tts', sha='f'*12) and set(config['parts']) == {'llm'}
    assert SpokenLM.from_folder(tmp_path/'p').trained['decoder']['name'] == 'qwen3-tts'
    with pytest.raises(SoundlmError, match=r"load_spoken\('.*p', decoder='qwen3-tts'\)"): hub.load(tmp_path/'p', parts=dict(llm=named(spoken.llm, config))).speak('one')

def named(llm, config):
    assert llm.sha == config['parts']['llm']['sha']
    return llm

# --- the decoder contract

@pytest.fixture(scope='module')
def decoders(): return dict(qwen=Qwen3TTSDecoder(*tiny_qwen()), omni=OmniDecoder(hub.load('omni')))

@pytest.mark.parametrize('which', ['qwen', 'omni'])
def test_every_name_of_the_contract(decoders, which):
    d = decoders[which]
    for k in SpeechDecoder.__annotations__: assert hasattr(d, k), k
    assert all(isinstance(v, t) for v, t in ((d.name, str), (d.dim, int), (d.sample_rate, int), (d.frame_rate, float), (d.module, torch.nn.Module)))
    for k, f in inspect.getmembers(SpeechDecoder, inspect.isfunction):
        if k.startswith('_'): continue
        want, got = (list(inspect.signature(o).parameters.values()) for o in (f, getattr(type(d), k)))
        plain = lambda ps: [p.name for p in ps if p.kind is not p.VAR_KEYWORD]
        assert plain(got)[:len(plain(want))] == plain(want), k
        more = [p for p in got[len(plain(want)):] if p.kind is not p.VAR_KEYWORD]
        assert all(p.default is not p.empty for p in more), f'{k} asks for more than the contract gives'

@pytest.mark.parametrize('which', ['qwen', 'omni'])
def test_one_way_to_call_both(decoders, which):
    d = decoders[which]
    said = [d.spell(t) for t in ('three', 'nine oh two')]
    cond = conditioning([d.text_vectors(t)[0] for t in said], [dict(speaker='anna', language='en', attributes=None)]*2)
    a, b = (d.generate(cond, frames=f, sampler=greedy, seeds=s) for f, s in ((4, 3), ([4, 3], [3, 4])))
    assert torch.equal(a[0], b[0]) and b[1].shape[1] <= 3*d.sample_rate/d.frame_rate + 1 and all(o.shape[0] == 1 for o in a + b)
    one = conditioning([cond.row(0)], cond.voices[:1])
    assert torch.equal(d.generate(one, frames=4, sampler=greedy)[0], d.generate(one, frames=4, sampler=greedy, seeds=9)[0])
    streamed = torch.cat(list(d.stream(one, frames=4, first=2, chunk=2, sampler=greedy, seed=0, stop=lambda: False)), 1)
    assert streamed.shape == a[0].shape
    codes = [d.codes([torch.as_tensor(o[0]) for o in d.codec.encode(w[None])]) if isinstance(d.codec.encode(w[None]), list) else d.codes(d.codec.encode(w[None])[0]) for w in [torch.randn(1, 9600)*.1]*2]
    leaf = cond.vectors.clone().requires_grad_()
    out = d.loss(conditioning([leaf[0], leaf[1, :int(cond.mask[1].sum())]], cond.voices), codes)
    out['loss'].backward()
    assert leaf.grad.abs().sum() > 0 and {'loss', 'nats', 'acc', 'tokens'} <= set(out) and d.longest(said[0]) > 0

@pytest.mark.parametrize('kind,dtype', [('mlp', torch.float32), ('gated', torch.float16), ('resampler', torch.bfloat16)])
def test_a_projector_is_trained_for_it(tmp_path, kind, dtype):
    "From recordings to a saved projector: tokens by its codec, states, texts first, then sound; nothing else moves"
    datasets_beside_an_older_hub()
    from soundlm.projector.train import ProjectorConfig, lessons_of, start_projector, train_projector
    from soundlm.tokens import TokenStore, tokenize
    model, tokenizer = tiny_qwen()
    d, llm, g = Qwen3TTSDecoder(model.to(dtype), tokenizer), FrozenLM.from_folder(os.environ['TINY_LLM']), torch.Generator().manual_seed(0)
    clip = lambda i: dict(id=f'c{i}', wav=torch.randn(1, 4000 + 1500*i, generator=g)*.2, sample_rate=16_000, text=texts[i % 5], speaker=('george', 'anna', None)[i % 3], language=('en', None)[i % 2])
    sides = [[TokenStore.load(tokenize([clip(i) for i in ids], d.codec, tmp_path/name), d.codec)] for name, ids in (('train', range(6)), ('valid', range(6, 8)))]
    config = ProjectorConfig(decoder='qwen3-tts', data=('fsdd',), kind=kind, positions=300, align=2, steps=3, val_every=3, log_every=1, ema=0., device='cpu', precision='32-true')
    hashes = lambda: (d.weights_hash(), llm.weights_hash())
    before, begin = hashes(), start_projector(config, llm.dim, llm.n_layers, d).state_dict()
    projector, run = train_projector(config, tmp_path/'run', llm=llm, decoder=d, lessons=lessons_of(config, llm, d, sides, tmp_path/'states'))
    assert run.steps == 3 and run.tokens > 0 and all(not torch.equal(v, begin[k]) for k, v in projector.state_dict().items())
    assert hashes() == before and all(p.grad is None and not p.requires_grad for m in (d.module, llm.model) for p in m.parameters())
    kept = hub.read_config(tmp_path/'run'/'model')
    assert kept['decoder']['name'] == d.name and kept['parts']['llm']['sha'] == llm.sha and 'val/loss' in str(run.history)
    again = SpokenLM.from_folder(tmp_path/'run'/'model').with_llm(llm)
    again.decoder = d
    assert torch.allclose(again.condition(['three']).vectors, SpokenLM(llm, projector, d).condition(['three']).vectors, atol=5e-3)
    with pytest.raises(SoundlmError, match='soft path|perceptual'): ProjectorConfig(decoder='qwen3-tts', perceptual=1.)
