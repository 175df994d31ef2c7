"What the notebook cannot hold: a resumed run with sound in it, other loaders, faults, and a package that stays light"
import subprocess, sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from soundlm import hub
from soundlm.core import SoundlmError, TokenError
from soundlm.layout import Frame
from soundlm.omni.model import MultimodalLLM
from soundlm.omni.trainer import (MultimodalPretrainingConfig, MultimodalPretrainingTrainer, Pages, Stage, TextDataset, as_data, build, evaluate, mission_run, omni_corpora, omni_full, omni_stages,
                                  omni_t4, omni_tiny, pack, run_facts, run_stage, save_omni, transcripts)

from soundlm.train import read_checkpoint
from soundlm.omni import trainer as T

from conftest import root

pytestmark = pytest.mark.filterwarnings('ignore:(?s).*dirpath has changed')
config = MultimodalPretrainingConfig(32, 2, 1, 1, 48, context=200, batch_size=4, max_steps=6, learning_rate=1e-2, val_every=3, log_every=1, dropout=.1, device='cpu')
V, K = 60, 8
numbers = config.model | dict(vocab_size=V, audio_vocab_size=3*K, codebook_size=K)

class Pairs(torch.utils.data.Dataset):
    "Words and random codes, spoken and heard; what is drawn from the generator changes them, as joined utterances do"
    weights = dict(audio=1., text=.1)
    def __init__(self, n=16): self.n, self.layout = n, Frame(3, K, end=True)
    def __len__(self): return self.n
    def __getitem__(self, i): return {k: v[0] for k, v in self.batch([i]).items()}
    def batch(self, indices, g=None):
        m, rows = dict(audio=56, end=57, speak=58, listen=59), []
        for i in indices:
            own, shift = torch.Generator().manual_seed(int(i)), 0 if g is None else int(g.integers(3))
            sound = (self.layout.build([torch.randint(K, (1, 2*2**j), generator=own) for j in range(3)])[0, 0] + V).tolist()
            words = [(int(i) + shift) % 9, int(i) % 7]
            rows.append([m['speak'], *words, m['audio'], *sound, m['end']] if i % 2 else [m['listen'], m['audio'], *sound, m['end'], *words])
        ids, where = torch.tensor(rows), torch.arange(len(rows[0])).repeat(len(rows), 1)
        audio = (ids >= V) | (ids == m['end'])
        slot = torch.where(audio, (audio.cumsum(1) - 1) % 7, -1)
        return dict(ids=ids, weight=torch.where(audio, 1., .1), slot=slot, mask=where >= 0)

def lm(): return build(None, None, numbers | dict(markers=dict(pad=53, unk=54, audio=56, speak=58, listen=59, end=55) | {'/audio': 57}))
def run(out, resume=None, train=None, val=None, **kw):
    return MultimodalPretrainingTrainer(replace(config, **kw), model=lm(), out=out, resume=resume).train(train or Pairs(), val or Pairs(5))
def log(m, last=3): return [tuple(r.get(k) for k in ('step', 'train/loss', 'train/audio_loss', 'train/text_loss', 'grad_norm', 'lr')) for r in m['history'] if 'train/loss' in r][-last:]

@pytest.mark.parametrize('kw', [dict(), dict(accumulation=2, ema=.9, optimizer='adamw')], ids=['muon', 'accumulated'])
def test_resumed_is_the_same_run(tmp_path, kw):
    a, m = run(tmp_path/'whole', **kw)
    b, n = run(tmp_path/'again', next((tmp_path/'whole').glob('step000003*.ckpt')), **kw)
    assert log(n) == log(m) and len(log(m)) == 3
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    same = 'loss', 'text_loss', 'audio_loss', 'text_acc', 'audio_acc', 'text_ppl', 'audio_ppl', 'before', 'after'
    assert {k: m[k] for k in same} == {k: n[k] for k in same}
    with pytest.raises(SoundlmError, match='resume'): run(tmp_path/'whole', **kw)
    assert log(run(tmp_path/'whole', 'auto', **kw)[1]) == log(m), 'a finished run is left as it is'

def test_metrics_count_each_id_once():
    m, d = lm().eval(), Pairs(7)
    got, b = evaluate(m, d, 3), d.batch(range(7))
    with torch.no_grad(): want = m.loss(b)
    assert np.isclose(got['loss'], float(want['loss']), atol=1e-5)
    for k in ('text', 'audio'):
        assert np.isclose(got[f'{k}_loss'], float(want[f'{k}_loss']), atol=1e-5) and np.isclose(got[f'{k}_ppl'], np.exp(got[f'{k}_loss']))
        assert np.isclose(got[f'{k}_acc'], float(want[f'{k}_acc']))
    assert got['text_tokens'] + got['audio_tokens'] == int(want['tokens'])

def test_loaders(tmp_path):
    want = log(run(tmp_path/'a')[1])
    assert log(run(tmp_path/'b', train=torch.utils.data.DataLoader(Pairs(), 4, shuffle=True), val=torch.utils.data.DataLoader(Pairs(5), 2))[1]) == want, "our order, whatever the loader's"
    bare = [Pairs()[i] for i in range(16)]
    data, size = as_data(torch.utils.data.DataLoader(bare, 4), 8)
    assert size == 4 and torch.equal(data.batch([3, 5])['ids'], Pairs().batch([3, 5])['ids'])
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self): yield from bare
    with pytest.raises(SoundlmError, match='goes through TextDataset'): as_data(torch.utils.data.DataLoader(Endless(), 4), 8)

@pytest.mark.parametrize('n,own,loop', [(7, 3, 1), (7, 2, 8), (8, 4, 3), (1, 5, 1)])
def test_pages_turn_once(n, own, loop):
    class Numbers:
        def __len__(self): return n
        def batch(self, indices, g=None): return list(indices)
    p = Pages(Numbers(), own, loop)
    assert sum((p.batch(range(i, min(i + loop, len(p)))) for i in range(0, len(p), loop)), []) == list(range(n))

@pytest.mark.parametrize('kw,say', [(dict(d_model=0), 'above 0'), (dict(n_heads=3), 'divide'), (dict(audio_weight=0., text_weight=0.), 'one above'),
    (dict(max_steps=-1), 'above 0'), (dict(optimizer='muno'), 'muon'), (dict(ema=1.), 'ema')])
def test_numbers(kw, say):
    with pytest.raises(SoundlmError, match=say): replace(config, **kw)

def test_defaults():
    c = MultimodalPretrainingConfig()
    want = dict(d_model=128, n_heads=4, n_layers=3, batch_size=8, max_steps=1000, learning_rate=1e-4, max_audio_duration=10., audio_sample_rate=24_000, audio_weight=1., text_weight=.1)
    assert {k: getattr(c, k) for k in want} == want
    assert sum(p.numel() for p in MultimodalLLM(**c.model).parameters()) == 7_029_824

def test_what_disagrees_is_refused(tmp_path):
    with pytest.raises(SoundlmError, match='audio_weight=1.0, the configuration audio_weight=2'): run(tmp_path, audio_weight=2.)
    text = hub.load('bpe-tiny')
    few = TextDataset(['one two three']*50, text, 16)
    with pytest.raises(TokenError, match='vocab_size=None'): MultimodalPretrainingTrainer(replace(config, vocab_size=100), out=tmp_path).train(few)
    with pytest.raises(TokenError, match='60 text rows'): MultimodalPretrainingTrainer(config, model=lm(), out=tmp_path).train(few)
    assert not any(tmp_path.iterdir()), 'nothing half-written'

def test_text_windows_and_cache(tmp_path):
    text = hub.load('bpe-tiny')
    d = TextDataset((f'sentence number {i}' for i in range(40)), text, 10, tmp_path/'ids.npz')
    b = d.batch(range(len(d)))
    assert torch.equal(b['ids'][1:, 0], b['ids'][:-1, -1]) and int(b['slot'].max()) == -1
    assert b['ids'][:, 1:].numel() == len(d)*10 <= len(d.ids) - 1
    assert np.array_equal(pack(None, text, tmp_path/'ids.npz'), d.ids), 'the texts are not read again'
    m, got = MultimodalPretrainingTrainer(replace(config, max_steps=2, val_every=1), text, out=tmp_path/'run').train(d)
    assert got['measured_on'] == 'train' and m.vocab_size == text.vocab_size and 'audio_loss' not in got
    name, train = transcripts()
    assert not set(train) & set(transcripts('valid')[1]) and name

def test_mission_run_starts_even(monkeypatch):
    monkeypatch.delenv('SOUNDLM_DATA', raising=False)
    ours, _ = mission_run(2, (1e-3,), length=16, windows=8, d_model=32, n_layers=1, batch_size=2)
    assert abs(ours['loss_before'] - 10.80) < .02 and ours['loss_after'] < ours['loss_before']

@pytest.mark.parametrize('tier,count', [(omni_tiny, 3_755_120), (omni_t4, 37_800_000), (omni_full, 440_500_000)])
def test_sizes(tier, count):
    "A block counted, times their number, and the table"
    n = tier(vocab_size=2048, audio_vocab_size=12_288)
    sizes = [sum(p.numel() for p in MultimodalLLM(**n | dict(n_layers=i, vocab_size=16, audio_vocab_size=0)).parameters()) for i in (1, 2)]
    total = sizes[0] + (sizes[1] - sizes[0])*(n['n_layers'] - 1) - 16*n['d_model'] + (14_336*n['d_model'] if tier is omni_tiny else 0)
    assert abs(total/count - 1) < (1e-9 if tier is omni_tiny else .002)

def test_a_stage_is_the_beginning_of_its_schedule(tmp_path):
    "Cut short and gone on with, a run is the run that was not cut; the rest of the schedule is never reached"
    numbers = dict(device='cpu', precision='32-true', log_every=1, batch_size=4)
    stage = Stage('first', 3, 12, lr=1e-2)
    data = Pairs(), Pairs(5)
    a = run_stage(m := lm(), replace(stage, steps=5), data, tmp_path/'a', **numbers)
    one = run_stage(n := lm(), stage, data, tmp_path/'b', **numbers)
    two = run_stage(n, replace(stage, steps=5, goes_on=True), data, tmp_path/'b', **numbers)
    assert (a.steps, one.steps, two.steps) == (5, 3, 5)
    assert [(r['step'], r['train/loss'], r['lr']) for r in a.history if 'train/loss' in r] == [(r['step'], r['train/loss'], r['lr']) for r in two.history if 'train/loss' in r]
    assert all(torch.equal(p, q) for p, q in zip(m.parameters(), n.parameters()))
    assert read_checkpoint(two.last)['global_step'] == 5 and run_stage(n, stage, data, tmp_path/'b', 'auto', **numbers).steps == 5
    facts = run_facts([one.last, a.last])
    assert facts['steps'] == '5 of 12 + 5 of 12' and float(facts['validation_loss']) > 0

def test_the_recipe_names_what_there_is():
    stages, corpora = omni_stages(), omni_corpora(.001)
    assert {n for s in stages for n in s.stores + s.valid} == set(corpora)
    assert [(s.steps, s.schedule, s.goes_on) for s in stages] == [(2000, 9000, False), (3000, 9000, True), (400, 1600, False), (5000, None, False)]
    assert [(dict(s.data)['text_weight'], dict(s.data)['slot_weights'], dict(s.data)['unprompted']) for s in stages] == [(8., None, 0.)] + [(16., (8, 3, .7, .7, 3, .7, .7), .1)]*3
    assert [s.steps for s in omni_stages(10)] == [4, 6, 1, 10] and type(corpora['w0']).__name__ == 'Words' and corpora['e0'].most == 2

def test_a_checkpoint_becomes_a_model(tmp_path):
    text, codec = hub.load('bpe-tiny'), hub.load('mel_24khz')
    tiny = omni_tiny(d_model=32, n_heads=2, n_kv_heads=1, d_ff=64, n_layers=1, context=200)
    from soundlm.omni.tokenizer import beside
    m = build(text, beside(text, codec), tiny)
    one = dict(ids=torch.arange(20)[None], weight=torch.ones(1, 20), slot=torch.full((1, 20), -1), mask=torch.ones(1, 20, dtype=torch.bool))
    class One:
        def __len__(self): return 2
        def batch(self, indices, g=None): return one
    res = run_stage(m, Stage(steps=2), (One(), One()), tmp_path/'run', device='cpu', precision='32-true', ema=.5)
    out = save_omni([res.last], tmp_path/'model', {'digit errors': '4 %'}, text, codec, tiny, ema=False, threads=7)
    card = (out/'README.md').read_text()
    assert '| digit errors | 4 % |' in card and '| threads | 7 |' in card and codec.sha in card
    back = hub.load(str(out))
    assert all(torch.allclose(p, q, atol=1e-3) for p, q in zip(m.parameters(), back.parameters()))
    assert any(not torch.equal(p, q) for p, q in zip(hub.load(str(save_omni([res.last], tmp_path/'averaged', (), text, codec, tiny))).parameters(), back.parameters()))

def test_package_is_light_and_has_the_five():
    five = 'SNACTokenizer', 'MultimodalDataset', 'MultimodalLLM', 'MultimodalPretrainingConfig', 'MultimodalPretrainingTrainer'
    code = f"import sys, soundlm.omni as o; assert 'torch' not in sys.modules; assert set({five!r}) <= set(dir(o)) and set(o.__all__) == set({five!r}); print(*[getattr(o, k).__module__ for k in {five!r}])"
    got = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert got.returncode == 0, got.stderr
    assert got.stdout.split() == [f'soundlm.omni.{o}' for o in ('tokenizer', 'dataset', 'model', 'trainer', 'trainer')]

def test_export_leaves_the_package_alone(tmp_path):
    "nbdev writes `__init__.py` only where there is none"
    nbdev = pytest.importorskip('nbdev.export')
    here = tmp_path/'lib'/'omni'
    here.mkdir(parents=True)
    ours = (root/'soundlm'/'omni'/'__init__.py').read_text()
    for f, s in (('__init__.py', ours), ('model.py', '')): (here/f).write_text(s)
    nbdev.add_init(tmp_path/'lib')
    assert (here/'__init__.py').read_text() == ours and 'AUTOGENERATED' not in ours

@pytest.mark.parametrize('part', ['codec', 'text'])
def test_parts_of_other_files_are_refused(tmp_path, part):
    "As many ids, another meaning"
    from types import SimpleNamespace as S
    mine, theirs = S(name='ours', sha='aaaaaaaaaaaa', vocab_size=9), S(name='yours', sha='bbbbbbbbbbbb', vocab_size=9)
    m, data = lm(), Pairs()
    m.parts = {part: mine}
    if part == 'text': data.text = theirs
    else: data.audio = S(codec=theirs, sample_rate=24_000, max_audio_duration=10., vocab_size=3*K, base=V)
    with pytest.raises(TokenError, match=r'yours \(bbbbbbbbbbbb\).*ours \(aaaaaaaaaaaa\)'): MultimodalPretrainingTrainer(config, model=m, out=tmp_path).train(data)
    T.same_part(part, mine, S(name='made here', sha='')) # nothing is known of it
    assert not any(tmp_path.iterdir())

@pytest.mark.parametrize('name', ['stage1', 'stage3'])
def test_a_run_is_refused_before_its_corpora_are_made(tmp_path, monkeypatch, name):
    (tmp_path/name).mkdir()
    (tmp_path/name/'last.ckpt').write_bytes(b'')
    monkeypatch.setattr(T, 'omni_tokens', lambda *a: pytest.fail('tokenized'))
    monkeypatch.setattr(T.hub, 'load', lambda *a: pytest.fail('loaded'))
    with pytest.raises(SoundlmError, match='holds a run already'): T.train_omni(tmp_path)

@pytest.mark.parametrize('kw,said', [(dict(lr=-1.), 'lr=-1'), (dict(precision='fp8'), '16-mixed'), (dict(device='tpu'), 'expected auto'), (dict(steps=0), 'steps=0')])
def test_numbers_are_refused_before_corpora_are_made(tmp_path, monkeypatch, kw, said):
    monkeypatch.setattr(T, 'omni_tokens', lambda *a: pytest.fail('tokenized'))
    monkeypatch.setattr(T.hub, 'load', lambda *a: pytest.fail('loaded'))
    with pytest.raises(SoundlmError, match=said): T.train_omni(tmp_path, **kw)
    assert not any(tmp_path.iterdir())
