"The evaluation: what is kept is not made again, bad input is refused, faults are counted, and the sentences follow from the numbers"
import os, signal, subprocess, sys, time

import numpy as np, pytest, torch

from soundlm import hub
from soundlm.core import SoundlmError
from soundlm.judges import Points
from soundlm.music import evaluate as E
from soundlm.music.corpus import SynthCaps
from tree import root

@pytest.fixture(scope='module')
def panel(): return E.judges(embeddings=('log-mel',))

@pytest.fixture(scope='module')
def model(): return hub.load('music-b').eval()

@pytest.fixture
def session(panel, tmp_path): return E.Session(E.read_prompts(n=5)[0], panel, 1., tmp_path/'cache', 2)

def noise(name='noise', fail_at=None, clip=lambda i: None):
    "A system that costs nothing, counts its calls and may break down"
    made = []
    def make(prompts, numbers):
        if fail_at is not None and fail_at in numbers: raise KeyboardInterrupt
        made.extend(numbers)
        return [clip(i) if clip(i) is not None else .1*torch.randn(1, E.rate, generator=torch.Generator().manual_seed(i)) for i in numbers]
    return E.System(name, make, 'noise, version 1'), made

def test_finished_clips_survive_a_kill(session):
    broken, first = noise(fail_at=3)
    with pytest.raises(KeyboardInterrupt): session.hear(broken)
    assert first==[0,1]
    whole, rest = noise()
    heard = session.hear(whole)
    assert rest==[2,3,4] and [r['id'] for r in heard.rows]==[p.id for p in session.prompts]
    again, none = noise()
    assert session.hear(again).rows==heard.rows and none==[]

def test_a_killed_process_goes_on(tmp_path):
    "The real command, killed without warning, run again: the second run makes only what is missing"
    words = ['evaluate','--models','music-b','--n','12','--seconds','1','--candidates','1','--cache',str(tmp_path/'kept'),'--out',str(tmp_path/'reports')]
    run = lambda: subprocess.Popen([sys.executable, '-c', 'from soundlm.cli import main; main()', *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p, end = run(), time.time()+240
    while time.time()<end and len(list((tmp_path/'kept').glob('*/*.codes.npz')))<12 and p.poll() is None: time.sleep(.05)
    p.send_signal(signal.SIGKILL); p.communicate()
    done = {f: f.stat().st_mtime_ns for f in (tmp_path/'kept').rglob('*.npz')}
    assert len(done)>=12 and not (tmp_path/'reports'/'evaluation.json').exists()
    p = run(); out,err = p.communicate(timeout=400)
    assert p.returncode==0, err[-800:]
    assert {f: f.stat().st_mtime_ns for f in done}==done
    from soundlm.metrics import read_report
    rows = read_report(tmp_path/'reports'/'evaluation.json')['rows']
    assert {r['system']:r['n'] for r in rows['Systems']}['music-b, guidance 1']==12
    made = {r['system']:r['clips'] for r in rows['What the codes took']}
    assert 'music-b, guidance 1' not in made and made['random codes']==12 # the killed run made the first, and did not live to count it

def test_half_written_files_are_made_again(session):
    system, made = noise()
    session.hear(system)
    f = next(session.cache.rglob('*.heard.npz')); f.write_bytes(f.read_bytes()[:50])
    session.hear(noise()[0]); assert E.kept(f) is not None

def test_the_key_is_the_content(session, model):
    from dataclasses import replace
    keys = {E.written('x', model, s, replace(model.sampler, guidance=g), c).key for s in (1.,2.) for g in (1.,3.) for c in (0,1)}
    assert len(keys)==8
    assert E.written('a', model, 1., model.sampler).key==E.written('b', model, 1., model.sampler).key
    p = session.prompts[0]
    other = E.Session([E.Prompt(p.id, p.caption+' ', clip=p.clip)], session.panel, 1., session.cache)
    assert other.path('k', 0, 'x')!=session.path('k', 0, 'x')

def test_faulty_clips_are_counted_and_not_dropped(session):
    bad = {0:torch.zeros(1, E.rate), 1:torch.full((1, E.rate), float('nan')), 2:torch.ones(1, E.rate)}
    heard = session.hear(noise(clip=bad.get)[0])
    row = E.system_row(heard)
    assert (row['n'], row['silent'], row['nan'], row['clipped'])==(5, 2, 1, 1) # NaN is heard as silence
    assert all(np.isfinite(r['clap']) for r in heard.rows)

def test_sound_that_is_too_short(session):
    with pytest.raises(SoundlmError, match='shorter than 1 s'): session.hear(noise(clip=lambda i: torch.zeros(1, 100))[0])

def test_unequal_sets_are_refused(session):
    a = session.hear(noise()[0])
    b = E.Heard('half', a.rows[:3], [p.take(range(3)) for p in a.points])
    with pytest.raises(SoundlmError, match='as many'): E.distance_rows(b, a)
    with pytest.raises(SoundlmError, match='different prompts'): E.paired(b, a)

@pytest.mark.parametrize('text,why', [('id,text\n1,x\n','named caption'), ('','named caption'), ('caption\n" "\n','empty caption')])
def test_captions_that_are_none(tmp_path, text, why):
    f = tmp_path/'c.csv'; f.write_text(text)
    with pytest.raises(SoundlmError, match=why): E.read_prompts(f)

def test_binary_captions(tmp_path):
    f = tmp_path/'c.csv'; f.write_bytes(bytes(range(128,256)))
    with pytest.raises(SoundlmError, match='Cannot read'): E.read_prompts(f)

def test_prompts_and_others_do_not_meet():
    for source,split in E.splits.items():
        a,b = E.read_prompts(source, 40)
        assert not {p.id for p in a}&{p.id for p in b} and all(p.clip.split==split for p in a+b)

def test_a_model_that_knows_the_answer_is_judged_right(session):
    "The references as a system: right where the judges are, at distance zero, and never beaten by noise"
    ref, junk = session.hear(E.recordings()), session.hear(noise()[0])
    assert abs(E.distance_rows(ref, ref, 20)[0]['kad'][0])<1e-9
    assert E.distance_rows(junk, ref, 20)[0]['kad'][0]>.1
    assert E.system_row(ref)['clap'][0]>E.system_row(junk)['clap'][0]+.2

def test_best_of_is_never_below_its_candidates(session, model):
    plain, best = E.written('plain', model, 1., model.sampler), E.best_of('best', session, model, model.sampler, 3)
    a, b = session.hear(plain), session.hear(best)
    assert all(y['clap']>=x['clap']-1e-3 for x,y in zip(a.rows, b.rows))
    assert [session.made[k][0] for k in ('plain','best: candidates','best')]==[5,10,5] # the first candidates were there

def test_own_captions_are_likelier(session, model):
    rows = {r['music']:r['nll'][0] for r in session.nats(model)}
    assert rows['its own caption']<rows["another clip's caption"]<rows['random codes']

def test_sentences_follow_from_numbers():
    s = [dict(system='through the codec', composes=False, style=(.95,.9,.99), key=(.3,.2,.4), silent=0, clipped=0, nan=0), dict(system='m, guidance 3', composes=True, style=(.8,.7,.9), key=(.3,.2,.4), silent=2, clipped=0, nan=1), dict(system='n', composes=True, silent=0, clipped=0, nan=0)]
    d = [dict(system=k, embedding='clap (x)', kad=v) for k,v in {'m, guidance 3':(.1,.05,.15), 'n':(.5,.4,.6), 'random codes':(.9,.8,1.)}.items()]
    p = [dict(first='m, guidance 3', second='n', measure='clap', n=9, difference=(.1,.05,.2), better='m, guidance 3'), dict(first='m, guidance 3', second='n', measure='key', n=9, difference=(0.,-.1,.1), better='neither')]
    said = ' '.join(E.verdict({'Systems':s, 'Distances to the references':d, 'Same prompts, clip by clip':p}, dict(n=9, seconds=6., prompts='heldout', judges='clap-tiny')))
    for part in ('`m, guidance 3` has the lowest', 'clearly nearer than `n`', 'not comparable', 'not MusicCaps', 'key: the judge is right on only', 'no claim', 'gains clap +0.100 [+0.050, +0.200] (n = 9)', 'no difference shown in key', '2 silent, 0 clipped, 1 not finite'): assert part in said, part

def test_numbers_while_training(model, panel):
    out = E.training_score(3, 1., panel)(model)
    assert {'clap','style','family','kad','spread','silent'}<=set(out) and 'composes' not in out and all(np.isfinite(v) for v in out.values())

def test_missing_judges_say_what_to_install(session, monkeypatch):
    for k in ('hear21passt','hear21passt.base'): monkeypatch.setitem(sys.modules, k, None) # as if it were not installed
    with pytest.raises(SoundlmError, match=r'soundlm\[judges\]'): E.load_tagger(session.prompts)

def test_two_prompts_prove_nothing(session):
    "However narrow a bootstrap finds them"
    rows = [dict(id=str(i), clap=.5, style='jazz', style_heard=h, mentions=('style',)) for i,h in enumerate(('jazz','jazz'))]
    a, b = E.Heard('a', rows, []), E.Heard('b', [r|dict(style_heard='funk') for r in rows], [])
    row = next(r for r in E.decided(E.paired(a, b)) if r['measure']=='style')
    assert row['difference']==(1.,1.,1.) and row['p']==.5 and row['better']=='neither'

def test_nats_of_another_size(session, model, panel, tmp_path):
    "Another clip's caption is another one where the set is larger"
    three = E.Session(session.prompts[:3], panel, 1., session.cache); three.nats(model)
    assert session.nats(model)==E.Session(session.prompts, panel, 1., tmp_path/'fresh').nats(model)

def test_another_model_has_another_key(model, session):
    from types import SimpleNamespace as N
    part = lambda o, sha: N(name=o.name, sha=sha, **{k:getattr(o, k) for k in ('sample_rate','codebooks','codebook_size','frame_rate') if hasattr(o, k)})
    def like(sha='a', codec='b', encoder='c'): return N(sha=sha, codec=part(model.codec, codec), encoder=part(model.encoder, encoder), frames=model.frames)
    keys = {E.written('x', like(**kw), 1., model.sampler).key for kw in ({}, dict(sha='z'), dict(codec='z'), dict(encoder='z'))}
    assert len(keys)==4

def test_another_recording_of_the_same_name(session, tmp_path):
    p = session.prompts[0]
    paths = {E.Session([E.Prompt(p.id, p.caption, clip=p.clip, file=f)], session.panel, 1., tmp_path).path('recording', 0, 'x') for f in ('', 'a', 'b')}
    assert len(paths)==3

@pytest.mark.parametrize('kw,why', [(dict(source='heldout', references='.'), 'have their own'), (dict(models=['music-b','./music-b']), 'two models named'), (dict(models=[]), 'no model'), (dict(models=['clap-tiny']), 'makes no music')])
def test_what_makes_no_sense_is_said_first(kw, why, monkeypatch):
    monkeypatch.setattr(E.Session, 'hear', lambda *a: pytest.fail('began to work'))
    with pytest.raises(SoundlmError, match=why): E.evaluate(**dict(dict(models=['music-b'], n=4), **kw))

def test_a_cache_that_cannot_be(panel, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(SoundlmError, match='file'): E.Session([], panel, 1., tmp_path/'file'/'x')

def test_one_caption_is_no_set(tmp_path):
    (tmp_path/'one.csv').write_text('caption\na slow blues\n')
    with pytest.raises(SoundlmError, match='gives 1 prompts'): E.read_prompts(tmp_path/'one.csv')

@pytest.mark.skipif(not hasattr(os, 'wait4'), reason='counts the memory of a child')
def test_memory_of_an_evaluation(tmp_path):
    from soundlm.cli import watched
    took, peak = watched('evaluate','--models','music-b','--n','16','--cache',str(tmp_path/'kept'),'--out',str(tmp_path/'reports'))
    assert peak<4*.931, f'{peak:.2f} GiB' # 4 GB
