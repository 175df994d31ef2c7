"What the reports are made of: the sign of a duel, what is counted, what is refused"
import pytest, torch
from soundlm import hub
from soundlm.core import SoundlmError
from soundlm.music import bench
from soundlm.music.bench import compare, compare_sections, duels, held_nll, held_store, spread, style_report, telling_clips, titled
from test_cli import here, small_zoo # noqa: F401 (fixtures)

def rows(hits, clap): return [dict(id=str(i), style='a', style_heard='a' if h else 'b', family='c', family_heard='c' if h else 'd', clap=clap) for i,h in enumerate(hits)]

def test_the_better_one_wins():
    heard = dict(good=rows([1]*20, .5), bad=rows([0]*20, .1))
    nats = dict(good=[dict(nll=3.)]*20, bad=[dict(nll=4.)]*20)
    for pair in (('good','bad'), ('bad','good')):
        got = duels({k: heard[k] for k in pair}, {k: nats[k] for k in pair})
        assert {r['better'] for r in got}=={'good'} and {r['measure'] for r in got}=={'nll','clap','style','family'}

def test_equals_do_not_win():
    heard = dict(a=rows([1,0]*10, .5), b=rows([1,0]*10, .5))
    assert {r['better'] for r in duels(heard, dict.fromkeys('ab', [dict(nll=3.)]*20))}=={'neither'}

def test_columns_and_titles():
    assert spread(dict(n=2), 'x', (1,0,2))==dict(n=2, x=1, x_low=0, x_high=2)
    assert list(titled('test', {'t':[]}))==['t'] and 'never' in list(titled('compositions', {'t':[]}))[0]
    with pytest.raises(KeyError): titled('train', {})

@pytest.mark.parametrize('split', bench.splits)
def test_clips_name_style_and_instrument(split):
    got = telling_clips(5, split)
    assert len(got)==5 and all(c.split==split and {'style','instrument'}<=set(c.mentions) for c in got)

def test_a_value_for_each_clip(here):
    m = hub.load('music-b')
    store = held_store(m.codec, 'test', 3)
    got = held_nll(m, store)
    assert len(store)==6 and len(got)==3 and all(set(r)=={'nll','nll_1','nll_2','nll_3','nll_4'} for r in got)
    assert all(abs(r['nll']-sum(r[f'nll_{i}'] for i in (1,2,3,4))/4)<1e-4 for r in got)
    assert held_nll(m, store)==got # nothing is drawn anew

def test_two_of_a_kind_are_refused(here):
    with pytest.raises(SoundlmError, match='B-delay'): compare_sections(['music-b','music-b'], 1)

def test_what_makes_no_music_is_refused(here):
    with pytest.raises(SoundlmError, match='makes no music'): compare_sections(['clap-tiny'], 1)

def test_two_codecs_are_refused(here):
    a, b = hub.load('music-a'), hub.load('music-b')
    class Other:
        def __init__(self, m): self.m = m
        codec = property(lambda self: type('C', (), dict(sha='other'))())
        def __getattr__(self, k): return getattr(self.m, k)
    with pytest.raises(SoundlmError, match='2 codecs'): compare(dict(a=(a,1), b=(Other(b),1)), None, [], None, None)

def test_the_words_are_of_another_style(here):
    m, probe = hub.load('music-b'), hub.load('probe-music')
    seen, read = [], m.read
    m.read = lambda prompts: (seen.append(prompts), read(prompts))[1]
    clips = telling_clips(4)
    got = style_report(m, clips, probe, seconds=.4)
    words = [p for ps in seen for p in ps if 'track' in p]
    assert len(words)==4 and all(c.attributes['style'] not in w for c,w in zip(clips, words))
    assert [r['n'] for r in got['What music takes from a 3 s clip, without words']]==[4]*3
