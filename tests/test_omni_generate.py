"Speaking and listening: texts, prompts, voices and manners, with a random model; the commands around them; the report"
import copy, re, shutil, subprocess, sys, warnings, wave
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from soundlm import cli, hub
from soundlm.core import AudioError, SoundlmError, SoundlmWarning, TokenError
from soundlm.omni import generate as G
from soundlm.omni.corpus import mission, recorded, spell, synthetic
from soundlm.omni.model import MultimodalLLM
from soundlm.sample import Sampler

zoo = Path(__file__).resolve().parent.parent/'data'/'zoo'
parts = 'mel_24khz','bpe-tiny','probe-digits','probe-voices'

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A zoo whose omni is random and says little"
    folder = tmp_path_factory.mktemp('zoo')/'zoo'
    for n in parts: shutil.copytree(zoo/n, folder/n)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('SOUNDLM_ZOO', str(folder))
        m.setattr(MultimodalLLM, 'longest', lambda self, text: 2+len(text.split()))
        text,codec = hub.load('bpe-tiny'), hub.load('mel_24khz')
        torch.manual_seed(0)
        lm = MultimodalLLM(text.vocab_size, 32, 2, 1, 64, 2, 12288, context=1100, markers=text.markers, words=text.words)
        lm.parts = dict(codec=codec, text=text)
        lm.save(folder/'omni', '# random\n')
        yield hub.load('omni')

@pytest.fixture
def lm(small): return small

@pytest.fixture(autouse=True)
def calm():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', SoundlmWarning)
        yield

def tone(seconds=1., hz=140):
    t = torch.arange(int(24_000*seconds))/24_000
    return (.3*torch.sign(torch.sin(2*torch.pi*hz*t))*(1+torch.sin(2*torch.pi*3*t))/2)[None]

def noise(seconds=1.): return .1*torch.randn(1, int(24_000*seconds), generator=torch.Generator().manual_seed(0))

# --- texts
@pytest.mark.parametrize('text,want', [('Hello, WORLD!', 'hello world'), ('42', 'four two'), ("it’s", "it's"), ('a-b', 'a b'), ('caf\n\tx', 'caf x'), ('u\u0308ber', 'über')])
def test_wording(text, want): assert spell(text)==want

@pytest.mark.parametrize('text', ['', ' ', '\n', '...', "'", '你好', '🙂 hello', '<|end|>', 'a|b', '3 €', 'naïve', '\x00', '٣'])
def test_refused_texts(text):
    with pytest.raises(SoundlmError) as e: spell(text)
    assert 'expected' in str(e.value)

def test_german_digits(): assert spell('7 Uhr', 'de')=='sieben uhr'

@pytest.mark.parametrize('most', [1,3,6,10])
def test_pieces_keep_every_word(most):
    text = ' '.join(mission)+' 0123456789 - "yes" ... no'
    made = G.pieces(text, most)
    assert ' '.join(made)==spell(text) and max(len(p.split()) for p in made)<=most

def test_mission_is_in_vocabulary():
    for t in mission: assert G.unheard(spell(t))==[]

# --- prompts
def test_prompt_is_what_training_had(lm):
    "Marker for marker as `MultimodalDataset.example` writes it"
    from soundlm.omni.dataset import tags_of
    row = dict(speaker='emma', language='de', attributes=dict(rate='slow', pitch='normal', style='whisper', clean=True))
    (said,ids), = lm.script('Guten Morgen', 'emma', rate='slow', style='whisper')
    assert said=='guten morgen' and ids==[*(lm.text.specials[t] for t in tags_of(row, lm.text.specials)), *lm.text.encode(said)]
    ref = G.Reference(torch.zeros(0), 'good night')
    (said,ids), = lm.script('hello', ref)
    assert ids==[*lm.text.encode('good night'), *lm.text.encode('hello')]

def test_voices(lm): assert lm.voices()==[*recorded, *synthetic]

@pytest.mark.parametrize('kw,near', [(dict(voice='gorge'),'george'), (dict(rate='slw'),'slow'), (dict(pitch='hgih'),'high'), (dict(style='wisper'),'whisper'), (dict(language='fr'),'en')])
def test_unknown_names(lm, kw, near):
    with pytest.raises(SoundlmError, match=near): lm.speak('hello', **kw)

def test_strange_words_are_named(lm):
    with pytest.warns(SoundlmWarning, match='zebra'): lm.speak('a zebra')
    with pytest.warns(SoundlmWarning, match='digits only'): lm.speak('hello', 'george')

# --- speaking
def test_seed_decides(lm):
    a,b,c = lm.speak('hello', seed=1), lm.speak('hello', seed=1), lm.speak('hello', seed=2)
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_a_batch_changes_nothing(lm):
    texts = 'good morning', 'hello', 'open the window please'
    prompts = [lm.script(t, 'anna')[0][1] for t in texts]
    together = lm.utter(prompts, [3,3,3], [5,6,7])
    for p,s,r in zip(prompts, (5,6,7), together): assert torch.equal(lm.utter([p], [3], [s])[0], r)

def test_long_text_is_joined(lm):
    with pytest.warns(SoundlmWarning, match='pieces') as w: wav = lm.speak('one two three four five six seven '*2, 'anna')
    assert len([o for o in w if 'pieces' in str(o.message)])==1
    assert wav.shape[0]==1 and wav.shape[1]>2*24_000*.15

def test_silence_where_nothing_comes(lm, monkeypatch):
    monkeypatch.setattr(MultimodalLLM, 'utter', lambda self, prompts, *a, **k: [torch.zeros(0, dtype=torch.long)]*len(prompts))
    with pytest.warns(SoundlmWarning, match='another seed'): assert lm.speak('hello').abs().max()==0

def test_only_legal_ids(lm): assert G.validity_report(lm, 40, batch=4)['illegal']==0

def test_the_clearest_take(lm, monkeypatch):
    monkeypatch.setattr(MultimodalLLM, 'heard', lambda self, rows: ['no','hello','hello'])
    assert lm.clearest(['hello']*3, [torch.zeros(0)]*3, 3)==[1]
    assert torch.equal(lm.speak('hello', tries=3), lm.speak('hello', seed=7919))
    with pytest.raises(SoundlmError, match='tries=0'): lm.speak('hello', tries=0)

def test_repetition_aware(lm):
    "`speak`'s own sampler reaches the draw: without a look back, a model to which all ids are alike says one a slot for ever"
    own = copy.deepcopy(lm)
    own.emb.weight.data.zero_()
    say = lambda window: own.utter([own.script('hello')[0][1]], [10], [0], Sampler(.7, 1, window=window))[0].view(-1, 7)
    kinds = lambda ids: [len(c.unique()) for c in ids.T]
    stuck, free = say(0), say(4)
    assert len(stuck)==10 and kinds(stuck)==[1]*7 and len(free)>4 and min(kinds(free))>1

def test_other_tokenizer_is_refused(lm):
    from soundlm.omni.tokenizer import SNACTokenizer
    with pytest.raises(TokenError): lm.generate_audio([5], SNACTokenizer(lm.codec))

# --- cloning
def test_clone_gives_back_only_what_is_new(lm):
    ref = lm.reference(tone(), 'hello')
    ids, = lm.utter([lm.script('good night', ref)[0][1]], [3], [0], reference=ref)
    assert len(ids)<=21 and len(ids)%7==0
    assert lm.sound(ids, ref).shape[1]==len(ids)//7*2048

def test_own_ears_give_the_transcript(lm, monkeypatch):
    monkeypatch.setattr(MultimodalLLM, 'transcribe', lambda self, *a, **k: 'good night')
    assert lm.reference(tone()).text=='good night'
    monkeypatch.setattr(MultimodalLLM, 'transcribe', lambda self, *a, **k: '')
    with pytest.raises(AudioError, match='understood'): lm.reference(tone())

@pytest.mark.parametrize('wav,why', [(torch.zeros(1,24_000),'silent'), (noise(),'no voice'), (torch.zeros(1,0),'0 samples'), (torch.full((1,100), torch.nan),'NaN')])
def test_no_speech_no_clone(lm, wav, why):
    with pytest.raises(AudioError, match=why): lm.reference(wav, 'hello')

def test_long_reference_is_cut(lm):
    with pytest.warns(SoundlmWarning, match='was cut to'): ref = lm.reference(tone(9.), 'hello')
    assert len(ref.ids)//7 <= 4*lm.sounds.frame_rate+1

def test_voice_may_be_samples_of_another_rate(lm):
    wav = torch.nn.functional.avg_pool1d(tone(), 3)
    assert len(lm.who(wav, 'hello', 8000).ids)==len(lm.who(tone(), 'hello').ids)

# --- listening
def test_parts_are_the_whole():
    wav = torch.cat([tone(1.5), torch.zeros(1,2400), tone(1.5)], 1)
    cut = G.phrases(wav, 24_000, 2.)
    assert torch.equal(torch.cat(cut, 1), wav) and abs(cut[0].shape[1]/24_000-1.55)<.06

@pytest.mark.parametrize('seconds', [.01, .05, 2., 6.01, 13.])
def test_any_length_is_heard(lm, seconds):
    assert isinstance(lm.transcribe(tone(seconds)), str)
    assert all(o.shape[1]<=6*24_000 for o in G.phrases(tone(seconds), 24_000))

def test_long_audio_is_split_and_said_so(lm):
    with pytest.warns(SoundlmWarning, match='longer than 6 s'): lm.transcribe(tone(7.))

def test_silence_says_nothing(lm): assert lm.transcribe([torch.zeros(1,24_000), torch.zeros(24_000)])==['','']

def test_ears_take_files_arrays_and_stereo(lm, tmp_path):
    import numpy as np
    from soundlm.audio import save
    save(tmp_path/'a.flac', tone(), 24_000)
    assert lm.transcribe(tmp_path/'a.flac')==lm.transcribe(str(tmp_path/'a.flac'))
    assert lm.transcribe(tone()[0].numpy())==lm.transcribe(tone())==lm.transcribe(np.repeat(tone().numpy(), 2, 0))

# --- measuring
def test_same_ids_as_transformers(lm):
    prompt = lm.script('one two', 'george')[0][1]
    assert torch.equal(G.through_qwen3(G.as_qwen3(lm), lm, prompt, 3), lm.utter([prompt], [3], [0], Sampler(0.))[0])

def test_voice_is_told_from_noise():
    low = torch.nn.functional.avg_pool1d(noise(1.), 9, 1, 4)
    assert G.voice_seconds(tone(), 24_000)>.6 and G.voice_seconds(noise(), 24_000)==G.voice_seconds(low, 24_000)==0

def test_clip_without_a_voice_is_warned_of(lm):
    with pytest.warns(SoundlmWarning, match='The clip has no voice.*whispered'): lm.transcribe(noise(.5))
    with pytest.warns(SoundlmWarning, match='1 clips have no voice'): lm.transcribe([tone(.5), noise(.5), torch.zeros(1,12_000)])
    with warnings.catch_warnings():
        warnings.simplefilter('error', SoundlmWarning)
        lm.transcribe([tone(.5), torch.zeros(1,12_000)])

@pytest.mark.parametrize('text,voice,said', [('in 2026','anna',True), ('3.5 hours','ben',True), ('at 7:30',None,True), ('1,000','emma',True), ('seven 7','anna',False), ('at 7, 8 or 9','anna',False), ('42','george',False)])
def test_numbers_are_said_digit_by_digit(lm, text, voice, said):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        lm.script(text, voice)
    assert sum('digit by digit' in str(w.message) for w in seen)==said

@pytest.mark.parametrize('voice', ['anna','george'])
def test_a_named_voice_has_no_reference_text(lm, voice):
    with pytest.raises(SoundlmError, match='name a file as the voice'): lm.speak('hello', voice, reference_text='good night')

def test_what_cannot_be_measured_is_none():
    from soundlm.metrics import show_value
    a,whisper = dict(f0=100., f0_spread=1., seconds=1., voiced=.5), dict(f0=float('nan'), f0_spread=float('nan'), seconds=1., voiced=0.)
    got = G.changes([a,a], [whisper,whisper])
    assert got['semitones higher'] is got['melody, semitones'] is None and got['voiced'][0]==-.5 and show_value(None)=='–'

def test_changes_are_paired():
    a,b = dict(f0=100., f0_spread=1., seconds=1., voiced=.5), dict(f0=200., f0_spread=3., seconds=2., voiced=.5)
    got = G.changes([a,a], [b,b])
    assert [round(v[0], 6) for v in got.values()]==[2, 12, 2, 0]

# --- what a strict reader found
def test_without_parts():
    bare = MultimodalLLM(60, 16, 2, 1, 32, 1, 0)
    for f in (lambda: bare.sounds, bare.voices, bare.whole, lambda: bare.speak('hello'), lambda: bare.transcribe(tone())):
        with pytest.raises(SoundlmError, match='hub.load'): f()

@pytest.mark.parametrize('voice,who', [('george','george'), (None,'without a name'), (G.Reference(torch.zeros(0), 'hello'),'without a name')])
def test_manners_that_no_one_heard(lm, voice, who):
    with pytest.warns(SoundlmWarning, match=f"{who} was only ever heard.*rate 'slow', style 'whisper'"): lm.script('seven', voice, rate='slow', style='whisper')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        lm.script('seven', voice); lm.script('seven', 'anna', rate='slow')

def test_reference_text_has_a_language(lm):
    assert lm.reference(tone(), '7', language='de').text=='sieben' and lm.who(tone(), '7', language='de').text=='sieben' and lm.who(tone(), '7').text=='seven'
    for f in (lambda: lm.reference(tone(), ''), lambda: lm.speak('hello', tone(), reference_text='')):
        with pytest.raises(SoundlmError, match='words or digits'): f()

def test_no_text(lm):
    for f in (lambda: lm.speak(None), lambda: lm.speak(['hello', None]), lambda: lm.speak(7)):
        with pytest.raises(SoundlmError, match='a text or a list of texts'): f()
    with pytest.raises(SoundlmError, match="'fr', expected one of en, de"): spell('3', 'fr')

@pytest.mark.parametrize('n', [2,3,10,99])
def test_others_are_others(n):
    a = G.others(n, 1)
    assert sorted(a)==list(range(n)) and all(i!=o for i,o in enumerate(a)) and a==G.others(n, 1) and (n<4 or a!=G.others(n, 2))

def test_first_sound(lm, here):
    "Warm and in a fresh process, which finds the same zoo"
    rows = cli.first_sound(lm, 'seven')
    assert [r['measure'].split(':')[0] for r in rows]==['first audio, warm','first audio, cold'] and 0<rows[0]['value']<rows[1]['value']<120

# --- commands
def run(*words):
    r = CliRunner().invoke(cli.app, [str(w) for w in words], prog_name='soundlm', env=dict(COLUMNS='200', TERMINAL_WIDTH='200'))
    if r.exception and not isinstance(r.exception, SystemExit): raise r.exception
    return r.exit_code, re.sub(r'\x1b\[[\d;]*m', '', r.output)

@pytest.fixture
def here(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('SOUNDLM_DATA', raising=False)
    return tmp_path

def good(*words):
    code,out = run(*words)
    assert code==0, out
    return out

def test_speak_writes_what_it_says(here):
    assert 'seconds of speech' in good('speak', 'seven two', '--voice', 'george', '-o', 'a.wav')
    good('speak', 'seven two', '--voice', 'george', '-o', 'b.wav')
    good('speak', 'seven two', '--voice', 'george', '-o', 'c.wav', '--seed', '4')
    with wave.open('a.wav') as w: assert (w.getnchannels(), w.getsampwidth(), w.getframerate())==(1, 2, 24_000) and w.getnframes()
    a,b,c = (Path(f'{k}.wav').read_bytes() for k in 'abc')
    assert a==b and a!=c

def test_five_sentences(here):
    good('speak')
    assert sorted(p.name for p in (here/'generated_audio').iterdir())==[f'sample_{i}.wav' for i in range(1,6)]

def test_streamed_file(here, lm, monkeypatch):
    from soundlm.omni import stream as S
    pushed, said, push, sound = [], [], S.StreamDecoder.push, MultimodalLLM.sound
    monkeypatch.setattr(S.StreamDecoder, 'push', lambda self, codes: (pushed.append(codes), push(self, codes))[1])
    monkeypatch.setattr(MultimodalLLM, 'sound', lambda self, ids, ref=None: (said.append(ids), sound(self, ids, ref))[1])
    out = good('speak', 'seven two', '--voice', 'george', '--stream', '-o', 's.wav')
    assert re.search(r'first audio after [\d.]+ s', out)
    good('speak', 'seven two', '--voice', 'george', '-o', 'a.wav')
    with wave.open('s.wav') as s, wave.open('a.wav') as a:
        assert (s.getnchannels(), s.getsampwidth(), s.getframerate())==(1, 2, 24_000)
        assert s.getnframes()==a.getnframes()
    want = lm.sounds.to_codes(said[0])
    got = [torch.cat(o, 1) for o in zip(*pushed)]
    assert len(pushed)>1 and len(want)==len(got)==3 and all(torch.equal(a, b) for a,b in zip(got, want)), 'the same codes, chunk by chunk or at once'

def test_stream_to_stdout(here):
    r = CliRunner().invoke(cli.app, ['speak','seven','--voice','george','--stream','-o','-'])
    assert r.exit_code==0 and len(r.stdout_bytes)>2048 and b'Wrote' not in r.stdout_bytes and list(here.iterdir())==[]

def test_stream_that_breaks_leaves_nothing(here, monkeypatch):
    def chunks(*a, **k):
        yield torch.zeros(1, 2400)
        raise SoundlmError('the codec fell over')
    monkeypatch.setattr(cli, 'chunks_of', chunks)
    assert run('speak', 'seven', '--stream')[0]==2 and list(here.iterdir())==[]

def test_clone_on_the_command_line(here):
    from soundlm.audio import save
    save(here/'me.wav', tone(), 24_000)
    good('speak', 'hello', '--voice', 'me.wav', '--reference-text', 'good night', '--rate', 'slow')
    good('speak', 'hello', '--voice', 'me.wav', '--reference-text', 'good night', '--stream', '-o', 's.wav')
    assert sorted(p.name for p in here.iterdir())==['me.wav','out.wav','s.wav']

@pytest.mark.parametrize('words,said', [
    (('speak',''),'words or digits'), (('speak','你好'),'spell them out'), (('speak','hello','--voice','ana'),'Did you mean anna?'), (('speak','hello','--voice','no.wav'),'there is none'),
    (('speak','hello','--rate','quick'),'slow'), (('speak','hello','-o','x.doc'),'ends in'), (('speak','hello','--stream','-o','x.mp3'),'ends in'), (('speak','hello','-o','-'),'--stream'),
    (('speak','--stream'),'without a text'), (('speak','hello','--stream','--tries','2'),'taken back'), (('speak','hello','--model','bpe-tiny'),'neither speaks nor listens'), (('speak','hello','--temperature','-1'),'temperature'),
    (('transcribe','no.wav'),'there is none'), (('transcribe','.'),'sound file'), (('train','omni','--tier','huge'),'tiny'),
    (('speak','-o','f.wav'),'name a folder'), (('speak','--out','deep/f.MP3'),'name a folder'), (('speak','hello','--voice','ben','--reference-text','good night'),"a reference text for the voice 'ben'"),
    (('train','omni','--precision','fp8'),'16-mixed'), (('train','omni','--lr','-1'),'lr=-1'), (('train','omni','--device','tpu'),'expected auto, cpu'), (('train','omni','--logger','x'),'wandb')])
def test_faults(here, words, said):
    code,out = run(*words)
    assert code==2 and said in out and out.count('error:')==1 and list(here.iterdir())==[]

def test_silent_clone_is_refused(here):
    from soundlm.audio import save
    save(here/'quiet.wav', torch.zeros(1,24_000), 24_000)
    code,out = run('speak', 'hello', '--voice', 'quiet.wav')
    assert code==2 and 'silent' in out and not (here/'out.wav').exists()
    assert 'nothing was heard' in good('transcribe', 'quiet.wav')

def test_transcribe(here, lm):
    from soundlm.audio import save
    save(here/'a.wav', tone(), 24_000)
    assert good('transcribe', 'a.wav').splitlines()[-1]==lm.transcribe(here/'a.wav')

@pytest.mark.parametrize('name', ['speak','transcribe'])
def test_options_are_explained(name):
    assert name in good('--help')
    out = good(name, '--help')
    for p in cli.inspect.signature(getattr(cli, name)).parameters.values(): assert (f'--{p.name}'.replace('_','-') if p.kind==p.KEYWORD_ONLY else p.name) in out

def test_bench(here, monkeypatch):
    import json
    monkeypatch.setattr(cli, 'first_sound', lambda m: [])
    monkeypatch.setattr(G, 'manners', (('rate','slow'),))
    good('bench', 'omni', '--clips', '1', '-o', 'reports')
    said = json.loads(Path('reports/omni.json').read_text())
    assert said['meta']['n']==1 and 'skipped' in str(said['rows']['Hearing recorded digits'])
    assert said['rows']['Validity'][0]['illegal']==0 and any(r['measure']=='equal ids' and r['value'] for r in said['rows']['Speed'])
    assert Path('reports/omni-clips.csv').read_text().startswith('what,text,voice,heard')
