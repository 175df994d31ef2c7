"What a notebook cell cannot hold: a process that is killed, a checkpoint that is not trusted, two processes, W&B"
import json, math, os, signal, subprocess, sys, textwrap, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lightning as L
from soundlm.core import SoundlmError, seed_everything
from soundlm.train import (EMA, Batches, Measure, MuonAdamW, Report, SampleAudio, TrainConfig, best_weights, fit, fit_batch_size, lr_factor, make_optimizer,
                           order, param_groups, param_kinds, read_checkpoint, read_log)

config = TrainConfig(steps=12, batch_size=4, accumulate=2, lr=1e-2, val_every=4, log_every=1, device='cpu')

class Runs:
    "Ascending numbers, shifted by what the generator draws"
    def __init__(self, n=50): self.n = n
    def __len__(self): return self.n
    def batch(self, indices, rng): return dict(ids=torch.as_tensor((np.asarray(indices)[:, None] + np.arange(8) + rng.integers(7)) % 12))

class Tiny(nn.Module):
    "Predicts the next number, with dropout, so that the global generator matters"
    def __init__(self):
        super().__init__()
        self.emb, self.hidden, self.head = nn.Embedding(12, 16), nn.Linear(16, 16), nn.Linear(16, 12)
    def loss(self, batch):
        x = nn.functional.dropout(self.hidden(self.emb(batch['ids'][:, :-1])).relu(), .1, self.training)
        return dict(loss=nn.functional.cross_entropy(self.head(x).transpose(1, 2), batch['ids'][:, 1:]), tokens=batch['ids'].numel())

def model():
    seed_everything(1)
    return Tiny()
def run(out, resume=None, callbacks=(), val=True, lm=None, **kw):
    return fit(lm or model(), Runs(), Runs(10) if val else None, replace(config, **kw), out, resume, callbacks)
def rows(result, keys=('step', 'train/loss', 'val/loss', 'grad_norm', 'lr', 'epoch', 'tokens')):
    return [tuple(r.get(k) for k in keys) for r in result.history]
def same(a, b):
    assert rows(a) == rows(b)
    assert (a.tokens, a.steps) == (b.tokens, b.steps)
    for x, y in zip(best_weights(a.last).values(), best_weights(b.last).values()): assert torch.equal(x, y)

class Signal(L.Callback):
    "Send this process a signal when a step is done"
    def __init__(self, step, which): self.step, self.which, self.sent = step, which, 0
    def on_train_batch_end(self, trainer, lit, *args):
        if trainer.global_step == self.step and not self.sent: self.sent = 1; os.kill(os.getpid(), self.which)

# killed, stopped, resumed
script = """
import signal, sys
sys.path.insert(0, {tests!r})
from test_train import Signal, run
run({out!r}, callbacks=[Signal({step}, signal.SIGKILL)], **{kw!r})
"""
@pytest.mark.parametrize('kw', [{}, dict(optimizer='muon', ema=.9, precision='bf16-mixed')], ids=['adamw', 'muon, ema, bf16'])
def test_killed_and_resumed_is_the_same_run(tmp_path, kw):
    whole = run(tmp_path/'whole', **kw)
    code = script.format(tests=str(Path(__file__).parent), out=str(tmp_path/'cut'), step=6, kw=kw)
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert res.returncode == -signal.SIGKILL, res.stderr
    assert read_checkpoint(tmp_path/'cut/last.ckpt')['global_step'] == 4
    same(whole, run(tmp_path/'cut', resume='auto', **kw))

class Worse(Tiny):
    "Says that every validation was worse than the one before"
    def loss(self, batch):
        if self.training: return super().loss(batch)
        self.asked = getattr(self, 'asked', 0) + 1
        return dict(loss=torch.tensor(float(self.asked)), tokens=1)

def test_last_is_the_last_and_not_the_best(tmp_path):
    seed_everything(1)
    res = run(tmp_path, lm=Worse(), ckpts=1)
    assert read_checkpoint(res.best)['global_step'] == 4
    assert read_checkpoint(res.last)['global_step'] == 12

class Parts(Tiny):
    "Reports a part only where a batch has something of it, as a model of text and sound does"
    def loss(self, batch):
        out, even = super().loss(batch), int(batch['ids'][0, 0]) % 2
        return out | {'even_loss' if even else 'odd_loss': torch.tensor(1. + even)}

def test_parts_may_be_missing(tmp_path):
    res = run(tmp_path, lm=Parts(), accumulate=3)
    got = [{k: r[f'train/{k}_loss'] for k in ('even', 'odd') if f'train/{k}_loss' in r} for r in res.history if 'train/loss' in r]
    assert any(len(g) == 2 for g in got) and all(g.get('even', 2.) == 2. and g.get('odd', 1.) == 1. for g in got)

@pytest.mark.parametrize('step,accumulate', [(6, 2), (8, 2), (5, 1)], ids=['between', 'validation due', 'no accumulation'])
def test_ctrl_c_keeps_a_checkpoint(tmp_path, step, accumulate):
    whole, before = run(tmp_path/'whole', accumulate=accumulate), signal.getsignal(signal.SIGINT)
    with pytest.raises(SoundlmError, match='Ctrl-C after .* resume'): run(tmp_path/'cut', callbacks=[Signal(step, signal.SIGINT)], accumulate=accumulate)
    assert signal.getsignal(signal.SIGINT) is before
    same(whole, run(tmp_path/'cut', resume='auto', accumulate=accumulate))

def test_a_finished_run_can_be_resumed_without_harm(tmp_path):
    a = run(tmp_path)
    b = run(tmp_path, resume='auto')
    assert b.best == a.best and b.val_loss == a.val_loss and rows(a) == rows(b)

def test_resume_without_validation(tmp_path):
    a = run(tmp_path/'a', val=False)
    assert a.best == a.last and math.isnan(a.val_loss)
    with pytest.raises(SoundlmError): run(tmp_path/'b', val=False, callbacks=[Signal(6, signal.SIGINT)])
    same(a, run(tmp_path/'b', resume='auto', val=False))

def test_other_numbers_are_refused(tmp_path):
    run(tmp_path, steps=4)
    with pytest.raises(SoundlmError, match='holds a run already'): run(tmp_path)
    for kw in (dict(seed=3), dict(batch_size=8), dict(accumulate=1), dict(optimizer='muon')):
        with pytest.raises(SoundlmError, match=f'trained with {next(iter(kw))}='): run(tmp_path, resume='auto', **kw)

class Wide(Tiny):
    "Of another vocabulary"
    def __init__(self):
        super().__init__()
        self.emb, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)

class Deep(Tiny):
    "With a layer more"
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(16, 16)

def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    a = run(tmp_path/'a', steps=4)
    for lm, say in ((Wide(), r'emb.weight is \(12, 16\), expected \(20, 16\)'), (Deep(), r'more.weight is missing, expected \(16, 16\)')):
        with pytest.raises(SoundlmError, match=say): run(tmp_path/'b', resume=a.last, lm=lm, steps=4)
        assert not (tmp_path/'b').exists()
    deep = run(tmp_path/'deep', lm=Deep(), steps=4)
    with pytest.raises(SoundlmError, match=r'more.weight is \(16, 16\), expected missing'): run(tmp_path/'b', resume=deep.last, steps=4)
    assert run(tmp_path/'c', resume=a.last, steps=4).steps == 4

# checkpoints
def test_checkpoints(tmp_path):
    r = run(tmp_path, steps=20, ema=.9)
    kept = sorted(tmp_path.glob('step*.ckpt'))
    vals = {h['step']: h['val/loss'] for h in r.history if 'val/loss' in h}
    best = sorted(vals, key=vals.get)[:3]
    assert {int(p.name[4:10]) for p in kept} == set(best)
    assert r.best in kept and r.val_loss == pytest.approx(min(vals.values()))
    for p in (*kept, tmp_path/'last.ckpt'): torch.load(p, weights_only=True)
    assert set(read_checkpoint(r.last)['soundlm']['rng']) == {'python', 'numpy', 'torch', 'cuda'}
    lm = model()
    lm.load_state_dict(best_weights(r))
    assert any(not torch.equal(x, y) for x, y in zip(best_weights(r, ema=True).values(), best_weights(r, ema=False).values()))

def test_best_weights_give_the_validation_loss(tmp_path):
    r = run(tmp_path, ema=.5)
    lm, data = model().eval(), Batches(Runs(10), batch_size=4, count=3, shuffle=False)
    lm.load_state_dict(best_weights(r))
    with torch.no_grad(): got = [(lm.loss(data[i])['loss'].item(), data[i]['ids'].numel()) for i in range(3)]
    assert sum(x*n for x, n in got)/sum(n for _, n in got) == pytest.approx(r.val_loss, abs=1e-5)

def test_truncated_checkpoint(tmp_path):
    r = run(tmp_path, steps=4)
    r.last.write_bytes(r.last.read_bytes()[:3000])
    with pytest.raises(SoundlmError, match='cut short'): run(tmp_path, resume='auto')

def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self): return (Path(tmp_path/'ran').touch, ())
    torch.save(dict(x=Evil()), tmp_path/'last.ckpt')
    with pytest.raises(SoundlmError): run(tmp_path, resume='auto')
    assert not (tmp_path/'ran').exists()

# faults
def test_loss_that_is_not_finite(tmp_path):
    class Breaks(Tiny):
        calls = 0
        def loss(self, batch):
            if self.training: self.calls += 1
            return {k: v*math.nan if k == 'loss' and self.calls > 10 else v for k, v in super().loss(batch).items()}
    with pytest.raises(SoundlmError, match='nan at step 6'): run(tmp_path, lm=Breaks())
    assert read_checkpoint(tmp_path/'last.ckpt')['global_step'] == 4

def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(SoundlmError, match='Cannot write'): run(tmp_path/'file'/'run')

@pytest.mark.parametrize('kw', [dict(steps=0), dict(lr=-1), dict(ema=1.), dict(optimizer='adam'), dict(precision='16'), dict(logger='tensorboard')])
def test_numbers_that_make_no_sense(kw):
    with pytest.raises(SoundlmError, match=next(iter(kw))): TrainConfig(**kw)

def test_empty_dataset(tmp_path):
    with pytest.raises(SoundlmError, match='empty dataset'): fit(model(), Runs(0), None, config, tmp_path)

# data order
@pytest.mark.parametrize('n,batch,world', [(10, 4, 1), (7, 3, 2), (5, 8, 3)])
def test_every_clip_once_an_epoch(n, batch, world):
    per = [Batches(Runs(n), 5, batch, 100, r, world) for r in range(world)]
    read = np.concatenate([b.indices(i) for i in range(3*n) for b in per])
    for e in range(len(read)//n): assert sorted(read[e*n:(e + 1)*n]) == list(range(n))
    assert not np.array_equal(order(50, 5, 0, 50), order(50, 6, 0, 50))

def test_schedule():
    f = [lr_factor(s, 1000) for s in range(1001)]
    assert max(f) == 1 and f[0] == .01 and f[1000] < 1e-6
    assert all(a < b for a, b in zip(f[:99], f[1:100])) and all(a >= b for a, b in zip(f[100:], f[101:]))
    assert lr_factor(0, 1) == 1

# optimisers
def test_groups_hold_every_parameter_once():
    lm = Tiny()
    lm.head = nn.Linear(16, 12, bias=False)
    lm.head.weight = lm.emb.weight
    ps = [p for g in param_groups(lm, replace(config, optimizer='muon')) for p in g['params']]
    assert len(ps) == len({id(p) for p in ps}) == len(list(lm.parameters()))
    assert param_kinds(lm)['head.weight'] == 'plain'
    lm.hidden.weight.requires_grad_(False)
    assert 'hidden.weight' not in param_kinds(lm)

def test_muon_without_hidden_matrices_is_adamw():
    a, b = nn.Embedding(4, 4), nn.Embedding(4, 4)
    b.load_state_dict(a.state_dict())
    for lm, name in ((a, 'muon'), (b, 'adamw')):
        opt = make_optimizer(lm, replace(config, optimizer=name))
        for _ in range(3):
            lm(torch.arange(4)).pow(2).sum().backward()
            opt.step(); opt.zero_grad()
    assert torch.equal(a.weight, b.weight)

def test_muon_state_survives_the_disk(tmp_path):
    def steps(lm, opt, n, seed):
        g = torch.Generator().manual_seed(seed)
        for _ in range(n):
            for p in lm.parameters(): p.grad = torch.randn(p.shape, generator=g)
            opt.step()
    c = replace(config, optimizer='muon')
    a = model(); oa = make_optimizer(a, c); steps(a, oa, 3, 0)
    b = model(); b.load_state_dict(a.state_dict()); ob = make_optimizer(b, c)
    torch.save(oa.state_dict(), tmp_path/'opt')
    ob.load_state_dict(torch.load(tmp_path/'opt', weights_only=True))
    steps(a, oa, 3, 1); steps(b, ob, 3, 1)
    assert isinstance(ob, MuonAdamW) and all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))

def test_ema_leaves_training_alone(tmp_path):
    keys = 'step', 'train/loss', 'grad_norm'
    assert rows(run(tmp_path/'a'), keys)[-1] == rows(run(tmp_path/'b', ema=.99), keys)[-1]

# what one sees and hears
def test_samples_change_nothing(tmp_path):
    def make(lm):
        assert not lm.training
        return [('noise', torch.randn(1, 1600)*.1, 16000), ('more', torch.rand(1, 1600)*.1, 16000)]
    a, b = run(tmp_path/'a'), run(tmp_path/'b', callbacks=[SampleAudio(make)])
    same(a, b)
    said = [json.loads(l) for l in (tmp_path/'b/samples/samples.jsonl').read_text().splitlines()]
    assert {o['step'] for o in said} == {8, 12} # 50 clips are read after 6.25 steps: at the validation after, and at the end
    assert all((tmp_path/'b/samples'/o['file']).stat().st_size > 1000 for o in said)

def test_skipped_steps_are_counted(tmp_path):
    class Scaler:
        scales = iter([8., 8., 4., 4., 2.] + [2.]*20)
        def get_scale(self): return next(self.scales)
    class Fake(L.Callback):
        def on_train_start(self, trainer, lit): trainer.precision_plugin.scaler = Scaler()
    r = run(tmp_path, callbacks=[Fake()])
    assert r.skipped == 2 and r.history[-2]['skipped'] == 2

def test_report_is_silent_when_asked(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('SOUNDLM_QUIET', '1'); run(tmp_path/'a', steps=4)
    assert capfd.readouterr() == ('', '')
    monkeypatch.setenv('SOUNDLM_QUIET', '0'); run(tmp_path/'b', steps=4)
    out, err = capfd.readouterr()
    assert out == '' and 'step      4/4' in err and 'tok/s' in err and len(err.splitlines()) == 1

def test_smoke_runs_are_short(tmp_path, monkeypatch):
    monkeypatch.setenv('SOUNDLM_MAX_STEPS', '2')
    assert run(tmp_path).steps == 2

def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.delenv('WANDB_API_KEY', raising=False)
    for k, v in dict(WANDB_SILENT='true', WANDB_DIR=str(tmp_path), WANDB_CACHE_DIR=str(tmp_path), WANDB_CONFIG_DIR=str(tmp_path), WANDB_DATA_DIR=str(tmp_path)).items(): monkeypatch.setenv(k, v)
    audio, numbers = SampleAudio(lambda lm: [('noise', torch.randn(1, 1600)*.1, 16000)]), Measure(lambda lm: dict(clap=.25, key=float('nan')))
    r = run(tmp_path/'run', steps=4, logger='wandb', callbacks=[audio, numbers])
    import wandb
    wandb.finish()
    assert len(log := list((tmp_path/'run').glob('wandb/offline-run-*/*.wandb'))) == 1
    end = time.time()+20 # its service writes on after `finish`
    while b'eval/clap' not in log[0].read_bytes() and time.time()<end: time.sleep(.1)
    assert b'eval/clap' in log[0].read_bytes() and b'eval/key' not in log[0].read_bytes()
    assert [(row['step'], row['eval/clap']) for row in r.history if 'eval/clap' in row] == [(4, .25)]

def test_measuring_changes_nothing(tmp_path):
    "Whatever is measured on the way, the run is the same: generators, modes and weights are put back"
    def measure(lm):
        torch.manual_seed(99); torch.rand(3); lm.train()
        return dict(x=1.)
    a, b = run(tmp_path/'a'), run(tmp_path/'b', callbacks=[Measure(measure)])
    assert [h['train/loss'] for h in a.history if 'train/loss' in h] == [h['train/loss'] for h in b.history if 'train/loss' in h]
    assert [h for h in b.history if 'eval/x' in h] and not [h for h in a.history if 'eval/x' in h]

def test_batch_size_that_fits():
    class Large(Tiny):
        def loss(self, batch):
            if len(batch['ids']) > 4: raise RuntimeError('CUDA out of memory.')
            return super().loss(batch)
    lm = Large()
    before = [p.clone() for p in lm.parameters()]
    got = fit_batch_size(lm, Runs(), config, effective=16)
    assert (got.batch_size, got.accumulate) == (4, 4)
    assert all(torch.equal(x, y) for x, y in zip(before, lm.parameters()))

# several processes
class Plain(Runs):
    def batch(self, indices, rng): return super().batch(indices, np.random.default_rng(0))
class NoDrop(Tiny):
    def loss(self, batch):
        self.eval()
        return super().loss(batch)
def run_on(devices, out):
    seed_everything(1)
    return fit(NoDrop(), Plain(), Plain(8), replace(config, batch_size=4//devices, devices=devices, steps=4), out)

ddp = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_train import run_on
run_on(2, {out!r})
"""
def test_two_processes_read_what_one_reads(tmp_path):
    a, file = run_on(1, tmp_path/'one'), tmp_path/'two.py'
    file.write_text(ddp.format(tests=str(Path(__file__).parent), out=str(tmp_path/'two')))
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parent.parent)}
    res = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=300)
    assert res.returncode == 0, res.stderr[-2000:]
    for x, y in zip(a.history, read_log(tmp_path/'two/metrics.csv'), strict=True):
        assert x.keys() == y.keys()
        for k in {'tokens', 'grad_norm', 'val/loss', 'lr'} & x.keys(): assert x[k] == pytest.approx(y[k], rel=1e-4)
