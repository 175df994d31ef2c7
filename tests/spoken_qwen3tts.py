"Run by test_projector_infer.py in a process with qwen-tts: a Llama's states, a projector, a tiny random Qwen3-TTS"
import os, sys
from pathlib import Path
import pytest, torch
from qwen3tts import tiny_qwen
from soundlm import hub
from soundlm.core import SoundlmError
from soundlm.projector.adapter import make_projector
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
    assert torch.cat(list(spoken.stream('three', voice=None, sampler=greedy)), 1).shape == whole.shape

def test_what_it_cannot(spoken):
    for kw, words in ((dict(voice='george'), 'george'), (dict(voice=None, rate='slow'), 'rate'), (dict(voice=None, language='elvish'), 'elvish')):
        with pytest.raises(SoundlmError, match=words): spoken.speak('one', **kw)
    with pytest.raises(SoundlmError): spoken.speak('  ', voice=None)

def test_its_files_name_the_voice(spoken, tmp_path):
    spoken.save(tmp_path/'p', '# p')
    config = hub.read_config(tmp_path/'p')
    assert config['decoder'] == dict(name='qwen3-tts', sha='f'*12) and set(config['parts']) == {'llm'}
    assert SpokenLM.from_folder(tmp_path/'p').trained['decoder']['name'] == 'qwen3-tts'
    with pytest.raises(SoundlmError, match='a voice'): hub.load(tmp_path/'p', parts=dict(llm=named(spoken.llm, config))).speak('one')

def named(llm, config):
    assert llm.sha == config['parts']['llm']['sha']
    return llm
