"The memory plan: its counts against classes, its bytes against what a process takes; Qwen3-TTS's own classes are compared in qwen3tts_checks.py"
import subprocess, sys
from dataclasses import replace
import pytest, torch
from soundlm.core import SoundlmError
from soundlm.projector.adapter import AudioProjector, count
from soundlm.projector.memory import *
from soundlm.projector.memory import wide_decoder, wide_llm

def test_the_missions_numbers():
    t = trainable()
    assert t['projector'] == 8_394_752 == count(AudioProjector(4096, 2048)) and t['Llama-3.1-8B'] == 8_030_261_248
    assert t['total'] > 9.7e9 and t['share'] < .001

@pytest.mark.parametrize('kw', [dict(num_hidden_layers=2), dict(vocab_size=1000), dict(hidden_size=2048, num_attention_heads=16, intermediate_size=5632)])
def test_formula_is_the_class(kw):
    l = llama_part(**kw)
    c = dict(num_hidden_layers=32, hidden_size=4096, num_attention_heads=32, intermediate_size=14336) | kw
    s = stack('', c['num_hidden_layers'], c['hidden_size'], c['num_attention_heads'], 8, c['intermediate_size'], qk_norm=False)
    assert l.linear == s.linear and l.params == s.params + 2*l.vocab*l.width and (l.q, l.kv, l.ffn) == (s.q, s.kv, s.ffn)

def test_wide_decoder_is_what_is_predicted():
    with torch.device('meta'): d = wide_decoder()
    assert count(d) == wide_parts()[1].params

def test_weights():
    l = llama_part()
    sizes = [weight_bytes(l, k) for k in ('nf4', 'int8', 'fp16', 'fp32')]
    assert sizes == sorted(sizes) and sizes[3] == 4*l.params
    assert sizes[0] == pytest.approx(l.linear*4.127/8 + (l.params - l.linear)*2, rel=1e-3) # 4.127 bits a weight: QLoRA's own number for double quantisation
    with pytest.raises(SoundlmError, match='fp5'): weight_bytes(l, 'fp5')

def test_cache_is_what_transformers_keeps():
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
    c = LlamaConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128, vocab_size=50)
    cache = LlamaForCausalLM(c)(torch.zeros(2, 7, dtype=torch.long), use_cache=True).past_key_values
    got = sum(o.keys.nbytes + o.values.nbytes for o in cache.layers)
    assert cache_bytes(stack('', 3, 64, 4, 2, 128, head_dim=16), 14, 4) == got

def test_optimiser_is_what_adamw_holds():
    p = AudioProjector(64, 32)
    opt = torch.optim.AdamW(p.parameters())
    p.project(torch.randn(1, 2, 64)).sum().backward(); opt.step()
    state = [v for s in opt.state.values() for v in s.values() if v.numel() > 1]
    assert sum(o.nbytes for o in [*p.parameters(), *(q.grad for q in p.parameters()), *state]) == adam_bytes(count(p))

@pytest.mark.parametrize('width,heads,kv,ffn,layers', [(256, 4, 2, 768, 3), (128, 4, 4, 512, 2)])
def test_kept_activations(width, heads, kv, ffn, layers):
    from soundlm.omni.model import MultimodalLLM
    lm = MultimodalLLM(vocab_size=60, d_model=width, n_heads=heads, n_kv_heads=kv, d_ff=ffn, n_layers=layers, context=96).requires_grad_(False)
    x = torch.randn(8, 96, width, requires_grad=True)
    got = kept_by(lambda: lm.trunk(x), lm.parameters())
    assert kept_bytes(stack('', layers, width, heads, kv, ffn, head_dim=width//heads), 8*96, 4) == pytest.approx(got, rel=.1)

def test_plan_adds_up():
    "Each row's peak from its parts, and those from the models' sizes"
    work = ['read', 'train', 'speak', 'live', 'live', 'live', 'read']
    rows, load = plan(), Load()
    assert len(rows) == len(work)
    for r, w in zip(rows, work):
        llm, tts = (None if r[k] == '–' else r[k] for k in ('LLM', 'Qwen3-TTS'))
        b = budget(llm, tts, w)
        assert r['peak'] == pytest.approx(sum(b.values())/GiB, abs=.006) and all(r[f'{k}, GiB'] == pytest.approx(v/GiB, abs=.006) for k, v in b.items())
        assert b['LLM'] == (weight_bytes(llama_part(), llm) if llm else 0)
        assert b['Qwen3-TTS'] == (sum(weight_bytes(o, tts) for o in qwen3tts_parts() if w != 'train' or o.name != 'codec') if tts else 0)
        assert b['projector'] == 8_394_752*dict(read=0, train=16).get(w, 4)
        busy = sum(v for k, v in b.items() if k not in ('reserve', 'context'))
        assert (b['reserve'], b['context']) == (int(load.reserve*busy), int(load.context)) and b['activations'] > 0 and (b['cache'] > 0) == (w in ('speak', 'live'))
    few, many = (sum(budget(tts='fp16', work='train', load=Load(clips=n)).values()) for n in (1, 8))
    assert few < many

@pytest.mark.parametrize('card,want', [(14.6, ['yes']*4 + ['barely', 'no', 'no']), (40, ['yes']*7), (6.9, ['barely', 'barely', 'yes'] + ['no']*4), (5.3, ['no', 'no', 'barely'] + ['no']*4), (4, ['no']*7)], ids=str)
def test_plan_fits(card, want):
    "Which phases fit a T4's 14.6 GiB, a card of 40, and smaller ones"
    rows = plan(card=card)
    assert [r['fits'] for r in rows] == want
    assert [r['phase'].split()[0] for r in rows[:3]] == ['1', '2', '3'] and [(r['LLM'], r['Qwen3-TTS']) for r in rows] == [('nf4', '–'), ('–', 'fp16'), ('–', 'fp16'), ('nf4', 'fp16'), ('int8', 'fp16'), ('fp16', 'fp16'), ('fp16', '–')]

@pytest.mark.parametrize('kw', [dict(work='sing'), dict(work='read', tts='fp16'), dict(work='train', llm='nf4'), dict(work='live', llm='nf4'), dict(work='read', llm='fp5')])
def test_plan_refuses(kw):
    with pytest.raises(SoundlmError): budget(**kw)

def test_full_width():
    "The real widths, a process for each phase: within 20 % of the prediction; the notebook runs both at once"
    rows = {r['phase']: r for r in full_width(('read', 'train'))}
    for r in rows.values(): assert .8 < r['ratio'] < 1.2, r
    assert rows['read']['shapes']['states'] == [2, 16, 4096] and rows['train']['shapes']['vectors'] == [2, 16, 2048]
    assert rows['train']['loss'] > 0

def test_full_width_says_what_failed():
    with pytest.raises(SoundlmError, match='failed'): measured('train', rows=-1)
