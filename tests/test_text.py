"Faults, parity and properties of the text encoder that a notebook cell cannot hold"
import json, os, shutil, subprocess, sys, warnings
from pathlib import Path
import pytest, torch
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
from soundlm import core, hub
from soundlm.core import HubError, SoundlmError, SoundlmWarning
from soundlm.music.text import (FeatureCache, TextEncoder, TextTrainer, fit_tokenizer, hurry, judge_text, mean_pool, paraphrases,
    pooled, real_pairs, said_classes, t5_tiny, text_readers, what_is_said)

prompts = ['techno beat with a synth lead', 'relaxing piano with rain', 'heavy metal guitar riff']

@pytest.fixture(scope='module')
def encoder(): return hub.load('t5-tiny')

@pytest.fixture(scope='module')
def published(tmp_path_factory):
    "A random two-layer T5 of t5-base's width, in the published format, decoder included"
    from transformers import T5Config, T5ForConditionalGeneration
    p = tmp_path_factory.mktemp('published')/'wide'
    torch.manual_seed(0)
    tok = hub.path('t5-tiny')/'tokenizer.json'
    n = len(json.loads(tok.read_text())['model']['vocab'])
    T5ForConditionalGeneration(T5Config(vocab_size=n, d_model=768, d_kv=64, num_heads=12, num_layers=2, d_ff=512)).save_pretrained(p)
    shutil.copy(tok, p)
    return p

def test_parity_at_width_768(published):
    from transformers import T5EncoderModel
    ours = hub.load(str(published))
    assert (ours.dim, ours.max_tokens, ours.name) == (768, 128, 'wide')
    ids,mask = ours.tokenize(prompts)
    with torch.no_grad(): want = T5EncoderModel.from_pretrained(published).eval()(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(ours.encode(prompts)[0], want*mask[...,None], atol=1e-4, rtol=1e-4)

def test_bin_weights(published, tmp_path):
    "An older folder with pytorch_model.bin is read, through weights_only"
    p = shutil.copytree(published, tmp_path/'old')
    torch.save(hub.read_weights(p), p/'pytorch_model.bin'); (p/'model.safetensors').unlink()
    torch.testing.assert_close(hub.load(str(p)).encode(prompts)[0], hub.load(str(published)).encode(prompts)[0])

def test_twin_is_a_transformers_folder(encoder):
    from transformers import AutoTokenizer, T5EncoderModel
    folder = hub.path('t5-tiny')
    batch = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors='pt')
    feats,mask = encoder.encode(prompts)
    assert torch.equal(batch['attention_mask'].bool(), mask)
    with torch.no_grad(): theirs = T5EncoderModel.from_pretrained(folder, dtype=torch.float32).eval()(**batch).last_hidden_state
    torch.testing.assert_close(theirs[mask], feats[mask], atol=1e-5, rtol=1e-5)

def test_twin_fits(encoder):
    assert encoder.dim<=256 and encoder.tokenizer.get_vocab_size()<=4096
    assert (hub.path('t5-tiny')/'model.safetensors').stat().st_size < 1.3*2**20
    assert all(torch.equal(v, v.half().float()) for v in encoder.model.state_dict().values())

def test_frozen(encoder):
    assert not encoder.train().training and not any(p.requires_grad for p in encoder.parameters())
    feats,_ = encoder.encode(prompts)
    assert feats.dtype==torch.float32 and not feats.requires_grad
    (torch.nn.Linear(encoder.dim, 1)(feats)).sum().backward() # may feed a model in training

@pytest.mark.parametrize('bad,say', [([''], 'is empty'), (['a', '\t\n '], 'Caption 1 is empty'), (['x'*100_000], '100,000 bytes'),
    (['é'*5001], '10,002 bytes'), ('techno', 'one string'), ([None], 'NoneType')])
def test_no_caption(encoder, bad, say):
    with pytest.raises(SoundlmError, match=say): encoder.encode(bad)

def test_cut_is_said_once(published):
    e = hub.load(str(published), max_tokens=8)
    with pytest.warns(SoundlmWarning, match='reads 8 tokens'): ids,mask = e.tokenize(['piano '*50, 'piano'])
    assert ids.shape==(2,8) and ids[0,-1]==e.tokenizer.token_to_id('</s>')
    with warnings.catch_warnings():
        warnings.simplefilter('error'); e.tokenize(['piano '*50])

def test_unknown_script_is_said(encoder):
    encoder._told.clear()
    with pytest.warns(SoundlmWarning, match='try English'): feats,_ = encoder.encode(['静かな音楽'])
    assert feats.isfinite().all()

@pytest.mark.parametrize('c', ['🎵', '\x00piano', 'a'*9_999, '</s><pad>', 'C# minor — 128bpm…', 'piano\u200b'])
def test_odd_text(encoder, c):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore'); feats,mask = encoder.encode([c, 'piano'])
    assert feats.isfinite().all() and mask.any(1).all()

def test_batch_invariance(encoder):
    feats,mask = encoder.encode(prompts+['a '*60])
    for i,p in enumerate(prompts): torch.testing.assert_close(encoder.encode([p])[0][0], feats[i][mask[i]], atol=1e-4, rtol=1e-4)

def test_broken_folders(published, tmp_path):
    for name,hurt,say in [('no_tok', lambda p: (p/'tokenizer.json').unlink(), 'tokenizer.json'),
        ('bad_tok', lambda p: (p/'tokenizer.json').write_text('{'), 'tokenizer.json'),
        ('cut', lambda p: (p/'model.safetensors').write_bytes((p/'model.safetensors').read_bytes()[:9999]), 'model.safetensors')]:
        p = shutil.copytree(published, tmp_path/name); hurt(p)
        with pytest.raises(HubError, match=say): hub.load(str(p))

def test_cache_across_processes(encoder, tmp_path):
    "Another process finds the features, and a killed writer leaves nothing"
    code = f"from soundlm import hub; from soundlm.music.text import FeatureCache; print(FeatureCache(hub.load('t5-tiny'), {str(tmp_path)!r}).add({prompts!r}))"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.split()==['3']
    cache = FeatureCache(encoder, tmp_path)
    feats,mask = cache.encode(prompts)
    assert (cache.hits, cache.misses)==(3,0)
    torch.testing.assert_close(feats, encoder.encode(prompts)[0], atol=5e-3, rtol=5e-3)
    assert [p.suffix for p in cache.folder.iterdir()]==['.safetensors']

def test_cache_keys(encoder, tmp_path):
    a = FeatureCache(encoder, tmp_path); a.add(prompts+prompts)
    assert len(a)==3
    short = hub.load('t5-tiny', max_tokens=4)
    assert len(FeatureCache(short, tmp_path))==0 # another length, other features
    with pytest.raises(SoundlmError, match='is empty'): a.encode([''])

def test_cache_unwritable(encoder, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(SoundlmError): FeatureCache(encoder, tmp_path/'file').add(prompts)

def test_labels_follow_mentions():
    from soundlm.music.corpus import SynthCaps
    for clip in SynthCaps('valid')[:200]:
        said = {k for k,v in what_is_said(clip.attributes, clip.mentions, clip.caption).items() if v}
        assert said-{'bpm','family','mode'}==set(clip.mentions)
        assert ('bpm' in said)==('BPM' in clip.caption)

def test_hurry_keeps_meaning():
    a,b,y = paraphrases(200, 'valid')
    for i,c in enumerate(a+b):
        short = hurry(c, core.rng('hurry', i)).lower()
        assert short.strip()
        for w in ('no drums','no beat','no percussion',' minor',' major'): assert (w in c.lower())==(w in short)

def test_training_is_repeatable():
    a,b,_ = paraphrases(300)
    tok = fit_tokenizer(a+b, 700)
    runs = [TextTrainer(t5_tiny(tok), list(zip(a,b))[:40], steps=3, batch=16) for _ in range(2)]
    for r in runs: r.fit()
    assert runs[0].history==runs[1].history

def test_twin_beats_its_baselines(encoder):
    a,b,_ = paraphrases(1000, seed=7)
    rows = {r['measure']:r for r in judge_text(text_readers(a+b, untrained=t5_tiny(encoder.tokenizer), twin=encoder), n=200)}
    r = rows['retrieval@1']
    assert r['twin']>max(r['words'], r['untrained'])
    assert min(rows[k]['twin'] for k in ('style','instrument','texture','drums'))>.9
    for k in ('style','instrument','family','tempo','drums'): assert rows[k]['twin']>rows[k]['untrained'] # not key and bpm: see the card
