"Bad input: one clear line, exit code 2, no traceback, nothing half-written"
import errno, os, re, shutil, signal, socket, subprocess, sys, tarfile, tempfile, time, zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, soundfile as sf

from soundlm import cli
from test_cli import files, good, here, root, run, server, small_zoo, start, tones # noqa: F401 (fixtures)

def snapshot(folder): return {p.relative_to(folder).as_posix():p.stat().st_size for p in folder.rglob('*') if '.cache' not in p.parts}

def fails(*words, said, code=2):
    "The command fails as it should, and leaves the folder as it was"
    before = snapshot(Path.cwd())
    got,out = run(*words)
    assert got==code and 'Traceback' not in out, out
    errors = [l for l in out.splitlines() if l.startswith('error: ')]
    assert len(errors)==1 and re.search(said, errors[0]), out
    assert snapshot(Path.cwd())==before, 'something was left behind'
    return errors[0]

def shell(*words, **kw):
    "A real process"
    env = dict(os.environ, COLUMNS='200', **kw.pop('env', {}))
    return subprocess.run([*start, *map(str, words)], env=env, capture_output=True, text=True, timeout=300, **kw)

# --- prompts and lengths
@pytest.mark.parametrize('prompt,said', [('', 'empty'), ('  \n', 'empty'), ('la '*33_000, '99,000 bytes'), ('a\udcff', 'UTF-8')])
def test_prompts(here, prompt, said): fails('music', prompt, said=said)

@pytest.mark.parametrize('seconds,said', [('0','more than 0'), ('-1','more than 0'), ('nan','more than 0'), ('601','at most 600'), ('inf','at most 600'), ('1e9','at most 600')])
@pytest.mark.parametrize('words', [('music','a waltz'), ('demo',)])
def test_seconds(here, words, seconds, said): fails(*words, f'--seconds={seconds}', said=said)

def test_no_number_and_no_command(here):
    for words in (('music','a waltz','--seconds','long'), ('musik','a waltz'), ('music',), ('music','a waltz','--loud')):
        code,out = run(*words)
        assert code==2 and 'Traceback' not in out and files(here)==[]
    assert "Did you mean 'music'" in run('musik')[1]

@pytest.mark.parametrize('option,said', [('--temperature=-1','temperature'), ('--top-k=-3','top_k'), ('--top-p=2','top_p'), ('--temperature=nan','temperature')])
def test_sampling(here, option, said): fails('music', 'a waltz', option, '--seconds=.4', said=said)

@pytest.mark.parametrize('words,said', [((), 'no prompt'), (('--candidates','0','x'), 'at least 1'), (('--candidates','-2','x'), 'at least 1'), (('--candidates','3','--style','tone.wav'), 'CLAP compares'),
    (('x','--style','tone.wav','--model','music-a'), 'no audio prompt'), (('x','--style','short.wav'), 'expected 1 to 5'), (('x','--style','silent.wav'), 'silent'), (('x','--style','nowhere.wav'), 'nowhere.wav'),
    (('x','--continue','tone.wav','--seconds','1'), 'less than the 1 s'), (('x','--style','tone.wav','--style-guidance=nan'), 'style_guidance'), (('x','--style-guidance=-1'), 'style_guidance'), (('x','--candidates','100000000'), 'ask for fewer')])
def test_audio_prompts_and_candidates(here, words, said):
    import numpy as np, soundfile as sf
    for name,seconds,level in (('tone',2.,.3), ('short',.5,.3), ('silent',2.,0.)): sf.write(here/f'{name}.wav', level*np.sin(np.arange(int(seconds*16000))*.1), 16000)
    fails('music', *words, *([] if '--seconds' in words else ['--seconds=.4']), said=said)

def test_a_long_audio_prompt_is_cropped_and_that_is_said(here):
    import numpy as np, soundfile as sf
    sf.write(here/'long.wav', .3*np.sin(np.arange(16000*7)*.1), 16000)
    code,out = run('music', 'x', '--style', 'long.wav', '--seconds', '.4')
    assert code==0 and 'cropped' in out

@pytest.mark.parametrize('words', [('music','a waltz','--device','tpu'), ('demo','--device','cuda:99'), ('tokenize','.','--device','gpu')])
def test_devices(here, words): fails(*words, said='device')

# --- names of models
@pytest.mark.parametrize('words,said', [(('music','a waltz','--model','musik-a'), 'Did you mean music-a'), (('demo','--model','mel_32khz'), 'makes no music'),
    (('music','a waltz','--model','./nowhere'), 'expected a folder'), (('tokenize','songs','--codec','mel32khz'), 'Did you mean mel_32khz'),
    (('tokenize','songs','--codec','t5-tiny'), 'no codec'), (('train','music-c'), 'Did you mean music-b'), (('train','mel_32khz','--tier','t4'), 'takes no --tier'),
    (('train','music-a','--tier','huge'), 'tiny, t4, full'), (('bench','codecs'), 'Did you mean codec'), (('data','fsd'), 'Did you mean fsdd')])
def test_names(here, words, said):
    tones(here/'songs', 1)
    fails(*words, said=said)

@pytest.mark.parametrize('name,twin', [('facebook/encodec_32khz','encodec_32khz-tiny'), ('google-t5/t5-base','t5-tiny')])
def test_no_hub(here, name, twin):
    "Within 10 s of asking, with the twin's name; a hub that never answers is the worst case"
    tones(here/'songs', 1)
    deaf = socket.socket()
    deaf.bind(('127.0.0.1', 0)), deaf.listen(16)
    env = dict(HF_HUB_OFFLINE='0', HF_ENDPOINT=f'http://127.0.0.1:{deaf.getsockname()[1]}', HF_HOME=str(here/'.cache'))
    code = f"import sys, time; from soundlm import hub, cli\ntry: hub.part_class({{'model_type':'encodec'}}), hub.torch\nexcept AttributeError: pass\nimport huggingface_hub.hf_api\nt = time.perf_counter()\ntry: cli.main()\nfinally: print('took', time.perf_counter()-t)"
    res = subprocess.run([sys.executable, '-c', code, 'tokenize', 'songs', '--codec', name], env=dict(os.environ, **env), capture_output=True, text=True, timeout=300)
    deaf.close()
    assert res.returncode==2 and 'Traceback' not in res.stderr and twin in res.stderr, res.stderr
    assert float(re.search(r'took ([\d.]+)', res.stdout)[1])<10
    assert sorted(files(here/'songs'))==['0.wav','metadata.csv'] and not (here/'tokens').exists()

# --- damaged models, other codecs
def broken(here, name, keep):
    shutil.copytree(Path(os.environ['SOUNDLM_ZOO'])/name, here/name)
    path = here/name/'model.safetensors'
    path.write_bytes(path.read_bytes()[:keep])

@pytest.mark.parametrize('keep', [0, 7, 1000, -1])
def test_truncated_weights(here, keep):
    broken(here, 'music-a', keep)
    fails('music', 'a waltz', '--model', './music-a', said='truncated')

def test_doctor_finds_a_broken_part(here, monkeypatch):
    for o in Path(os.environ['SOUNDLM_ZOO']).iterdir(): shutil.copytree(o, here/'zoo'/o.name)
    (here/'zoo'/'t5-tiny'/'model.safetensors').write_bytes(b'x')
    monkeypatch.setenv('SOUNDLM_ZOO', str(here/'zoo'))
    fails('doctor', said='truncated')
    assert 'broken' in run('doctor')[1]

@pytest.fixture
def other(here):
    "Another codec with the shape of mel_32khz"
    from soundlm import hub
    c = hub.load('mel_32khz')
    c.mean += 1
    return c.save(here/'mel_other', hub.card('mel_other', 'Another.', {}))

def test_model_of_another_codec(here, other): fails('music', 'a waltz', '--codec', './mel_other', said="mel_32khz.*mel_other")

def test_tokens_of_another_codec(here, other):
    for s in ('train','valid'):
        tones(here/'songs'/s)
        good('tokenize', 'songs', '--split', s, '-o', f'tok/{s}', '--codec', './mel_other')
    fails('tokenize', 'songs', '-o', 'tok/train', said='mel_other.*mel_32khz')
    fails('train', 'music-a', '--tokens', 'tok', '--steps', '1', said='mel_other.*mel_32khz')

def test_damaged_tokens(here):
    tones(here/'songs'/'train')
    good('tokenize', 'songs', '-o', 'tok/train')
    file = next((here/'tok').rglob('*.parquet'))
    file.write_bytes(file.read_bytes()[:100])
    fails('train', 'music-a', '--tokens', 'tok', said='not a whole Parquet')
    fails('train', 'music-a', '--tokens', 'nowhere', said='(No|expected a) token store')

def test_tokens_of_another_folder(here):
    tones(here/'songs'), tones(here/'more', 2)
    good('tokenize', 'songs', '-o', 'tok')
    good('tokenize', 'songs', '-o', 'tok')
    fails('tokenize', 'more', '-o', 'tok', said='another folder')
    fails('tokenize', 'songs', '-o', 'tok', '--seconds', '.5', said='corpus')

@pytest.mark.parametrize('text', ['{}', '{"codec": "mel', ''])
def test_damaged_store(here, text):
    tones(here/'songs')
    good('tokenize', 'songs', '-o', 'tok')
    (here/'tok'/'store.json').write_text(text)
    fails('tokenize', 'songs', '-o', 'tok', said='delete tok and tokenize again')

# --- numbers
@pytest.mark.parametrize('seconds', ['.00001','inf','nan','-1','0'])
def test_sections(here, seconds):
    tones(here/'songs', 1)
    fails('tokenize', 'songs', f'--seconds={seconds}', said='expected (at least 0.1|more than 0)')

def test_short_sections_keep_the_whole_recording(here):
    from soundlm.tokens import TokenStore
    (here/'songs').mkdir()
    sf.write(here/'songs'/'x.wav', noise(3*32000+8000), 32000)
    good('tokenize', 'songs', '-o', 'tok', '--seconds', '.5')
    store = TokenStore.load(here/'tok')
    assert len(store)==6 and sum(store.columns['seconds'])==3

@pytest.mark.parametrize('words', [('t5-tiny','--steps=0'), ('t5-tiny','--seed=-1'), ('probe-music','--seed=5000000000'), ('probe-music','--clips=0'), ('mel_32khz','--steps=-1'),
    ('mel_32khz','--clips=-3'), ('encodec_32khz-tiny','--batch-size=0'), ('encodec_32khz-tiny','--steps=0'), ('music-a','--batch-size=-1'), ('music-a','--short-steps=-1'), ('music-a','--seed=-1')])
def test_training_numbers(here, words): fails('train', *words, said=f"{words[1].split('=')[0]} .*expected a number")

def test_devices_of_trainings(here, monkeypatch):
    "'auto' is told apart before anything is rendered"
    fails('train', 'encodec_32khz-tiny', '--device', 'tpu', said='device')
    asked = []
    monkeypatch.setattr('soundlm.core.get_device', lambda name: asked.append(name) or 'cpu')
    monkeypatch.setattr(cli, 'codec_clips', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run('train', 'encodec_32khz-tiny', '--device', 'auto')[0]==130 and asked==['auto']

@pytest.mark.parametrize('clips', ['0','-1'])
def test_bench_of_no_clips(here, clips): fails('bench', 'codec', f'--clips={clips}', said='--clips')

# --- damaged audio
def noise(n, c=1): return np.random.default_rng(0).normal(0, .1, (n,c)).astype('float32')

def make_bad(path, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind=='nan': sf.write(path, np.full((1000,1), np.nan, 'float32'), 32000, subtype='FLOAT')
    elif kind=='empty': sf.write(path, noise(0), 32000)
    elif kind=='no audio': path.write_text('these are words')
    elif kind=='no bytes': path.write_bytes(b'')
    else:
        sf.write(path, noise(32000), 32000)
        path.write_bytes(path.read_bytes()[:20_000])

@pytest.mark.parametrize('kind,said', [('nan','NaN'), ('empty','0 samples'), ('no audio','Cannot read'), ('no bytes','Cannot read'), ('truncated','breaks off')])
def test_bad_audio(here, kind, said):
    make_bad(here/'songs'/'x.wav', kind)
    assert 'x.wav' in fails('tokenize', 'songs', said=said)

def test_missing_audio(here):
    fails('tokenize', 'songs', said='none of that name')
    (here/'songs').mkdir()
    fails('tokenize', 'songs', said='no sound files')
    tones(here/'songs', 2)
    (here/'songs'/'1.wav').unlink()
    fails('tokenize', 'songs', said='not there')

@pytest.mark.parametrize('text,said', [('file,caption\n0.wav,x\n','no file_name'), ('file_name\n../0.wav\n','inside'), ('file_name\n0.wav\n0.wav\n','twice'), ('\x00','')])
def test_bad_metadata(here, text, said):
    tones(here/'songs', 1)
    shutil.copy(here/'songs'/'0.wav', here/'0.wav')
    (here/'songs'/'metadata.csv').write_text(text)
    fails('tokenize', 'songs', said=said)

def test_many_channels_and_low_rates_are_said(here):
    (here/'songs').mkdir()
    sf.write(here/'songs'/'8.wav', noise(32000, 8), 32000)
    sf.write(here/'songs'/'low.wav', noise(8000), 8000)
    out = good('tokenize', 'songs', '-o', 'tok')
    assert 'note: 8-channel audio was mixed down to mono' in out and 'note: 8000 Hz audio was resampled to 32000 Hz' in out
    from soundlm.tokens import TokenStore
    assert [TokenStore.load(here/'tok').frames(i) for i in (0,1)]==[50,50]

# --- places that cannot be written
@pytest.mark.parametrize('words', [('music','a waltz','-o','file/x.wav'), ('demo','-o','file'), ('demo','-o','file/demo'), ('tokenize','songs','-o','file'),
    ('train','music-a','-o','file'), ('bench','codec','-o','file'), ('music','a waltz','-o','songs.wav'), ('music','a waltz','-o','x'*300+'.wav')])
def test_a_file_in_the_way(here, words):
    tones(here/'songs', 1)
    (here/'file').write_text('mine')
    (here/'songs.wav').mkdir()
    fails(*words, said='Cannot write|too long')
    assert (here/'file').read_text()=='mine'

def test_a_wrong_ending(here): fails('music', 'a waltz', '-o', 'x.doc', said=r'\.wav, \.flac')
def test_a_device_is_no_output(here): fails('music', 'a waltz', '-o', os.devnull+'.wav' if os.name=='nt' else '/dev/null', said='expected a name')

@pytest.mark.skipif(os.name=='nt', reason='POSIX permissions')
def test_no_permission(small_zoo):
    "A folder of somebody else (root becomes nobody when the output is checked: nobody may not be able to import)"
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    code = """import os
from soundlm import cli
check = cli.check_out
def as_nobody(*args, **kw):
    if os.geteuid()==0: os.setuid(65534)
    return check(*args, **kw)
cli.check_out = as_nobody
cli.main()"""
    try: res = subprocess.run([sys.executable, '-c', code, 'music', 'a waltz', '-o', folder/'x.wav'], capture_output=True, text=True)
    finally: folder.chmod(0o755); left = files(folder); shutil.rmtree(folder)
    assert res.returncode==2 and 'no permission' in res.stderr and 'Traceback' not in res.stderr and left==[], res.stderr

def full_disk(monkeypatch):
    "Every file stops growing after a few bytes"
    full = OSError(errno.ENOSPC, 'No space left on device')
    write = Path.write_bytes
    def half(self, data):
        write(self, bytes(data)[:100])
        raise full
    monkeypatch.setattr(Path, 'write_bytes', half)

def test_full_disk(here, monkeypatch):
    full_disk(monkeypatch)
    assert 'free some space' in fails('music', 'a waltz', '--seconds', '.4', said='No space left')
    fails('train', 'mel_32khz', '--clips', '4', '--steps', '0', said='No space left')

@pytest.mark.skipif(os.name=='nt', reason='POSIX limits')
@pytest.mark.parametrize('words,limit', [(('demo','--seconds','.4','-o','demo'), 10_000), (('tokenize','songs','-o','tok'), 1_000)])
def test_no_room_in_a_real_process(here, words, limit):
    "The system's own limit on the size of a file stops every way of writing one"
    import resource
    tones(here/'songs', 2)
    env = dict(MPLCONFIGDIR=os.environ.get('MPLCONFIGDIR') or os.path.expanduser('~/.config/matplotlib'), PYTHONDONTWRITEBYTECODE='1')
    res = shell(*words, env=env, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit,limit)))
    assert res.returncode==2 and 'Traceback' not in res.stderr and 'Cannot write' in res.stderr, res.stderr
    left = [f for f in files(here) if not f.startswith(('songs/','.cache'))]
    assert not any(Path(f).name.startswith('.') for f in left) and not any((here/f).stat().st_size==limit for f in left)

# --- Ctrl-C
def test_stop_while_composing(here, monkeypatch):
    from soundlm.music.baseline import MusicA
    def music(self, *a, sampler=None, **kw): raise KeyboardInterrupt
    def perform(*a, **kw): raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'perform', perform)
    code,out = run('music', 'a waltz')
    assert code==130 and 'Stopped.' in out and files(here)==[]

@pytest.mark.skipif(os.name=='nt', reason='POSIX signals')
def test_stop_while_training(here):
    "A checkpoint is kept, and the run goes on from it"
    import torch
    for s in ('train','valid'):
        tones(here/'songs'/s)
        good('tokenize', 'songs', '--split', s, '-o', f'tok/{s}')
    words = 'train', 'music-a', '--tokens', 'tok', '--short-steps', '0', '--batch-size', '2', '-o', 'run'
    p = subprocess.Popen([*start, *words, '--steps', '100000'], env=dict(os.environ), stderr=subprocess.PIPE, text=True)
    for _ in range(1500): # until the first line of the log
        if any((here/'run').rglob('metrics.csv')) or p.poll() is not None: break
        time.sleep(.2)
    p.send_signal(signal.SIGINT)
    err = p.communicate(timeout=300)[1]
    assert p.returncode==130 and 'Traceback' not in err and '--resume' in err, err
    last = next((here/'run').rglob('last.ckpt'))
    done = torch.load(last, map_location='cpu', weights_only=True)['global_step']
    assert done>0
    fails(*words, '--steps', '100000', said='(a run already|already holds)')

# --- data
@pytest.mark.parametrize('deaf', [False, True])
def test_data_offline(here, monkeypatch, deaf):
    "No server, or one that never answers: a line within 10 s that names the home page"
    s = socket.socket()
    s.bind(('127.0.0.1', 0))
    if deaf: s.listen(4)
    monkeypatch.setitem(cli.public_sets, 'fsdd', replace(cli.public_sets['fsdd'], url=f'http://127.0.0.1:{s.getsockname()[1]}/x.zip'))
    monkeypatch.setenv('SOUNDLM_DATA', str(here/'data'))
    t = time.perf_counter()
    fails('data', 'fsdd', said=re.escape(cli.public_sets['fsdd'].home))
    assert time.perf_counter()-t<10
    s.close()

@pytest.mark.parametrize('kind', ['text','cut','other files','nested'])
def test_damaged_archive(here, server, kind):
    if kind=='text': server.body = b'<html>please log in</html>'
    if kind=='cut': server.body = server.body[:50_000]
    if kind in ('other files','nested'):
        with zipfile.ZipFile(here/'y.zip', 'w') as z: z.writestr('in.zip' if kind=='nested' else 'readme', b'PK')
        server.body = (here/'y.zip').read_bytes()
        (here/'y.zip').unlink()
    fails('data', 'fsdd', said='damaged|none of the files')
    assert files(here)==[], 'a damaged download is fetched anew'

@pytest.mark.parametrize('name', ['../evil.wav', 'a/../../evil.wav', '/tmp/evil-of-soundlm.wav', r'..\evil.wav', 'ok/../../data/evil.wav'])
@pytest.mark.parametrize('kind', ['zip','tar'])
def test_archives_stay_in_their_folder(here, name, kind):
    from soundlm.core import SoundlmError
    path = here/f'x.{kind}'
    (here/'payload').write_bytes(b'evil')
    if kind=='zip':
        with zipfile.ZipFile(path, 'w') as z: z.write(here/'payload', name)
    else:
        with tarfile.open(path, 'w') as t: t.add(here/'payload', name)
    if name.startswith('/'): return # such a name is made relative when it is written
    with pytest.raises(SoundlmError, match='outside'): cli.unpack(path, here/'to', ((r'(.*)', r'\1'),))
    assert not list(here.rglob('evil.wav')) and not Path('/tmp/evil-of-soundlm.wav').exists()

def test_links_in_archives_are_not_followed(here):
    with tarfile.open(here/'x.tar', 'w') as t:
        link = tarfile.TarInfo('recordings'); link.type, link.linkname = tarfile.SYMTYPE, str(here); t.addfile(link)
        (here/'payload').write_bytes(b'x')
        t.add(here/'payload', 'recordings/evil.wav')
    cli.unpack(here/'x.tar', here/'to', ((r'(.*)', r'\1'),))
    assert files(here/'to')==['recordings/evil.wav'] and not (here/'evil.wav').exists()

def test_unreadable_metadata_of_musiccaps(here):
    from soundlm.core import HubError, SoundlmError
    from soundlm.music.corpus import MusicCaps, musiccaps_rows
    tones(here/'mc', 1)
    (here/'c.csv').write_text('id,words\n1,2\n')
    for path,said in ((here/'none.csv','Cannot read'), (here/'c.csv','expected ytid')):
        with pytest.raises(SoundlmError, match=said): MusicCaps(here/'mc', path)
    with pytest.raises(SoundlmError, match='folder'): MusicCaps(here/'nowhere')
    with pytest.raises(HubError, match='soundlm data musiccaps'): musiccaps_rows()
