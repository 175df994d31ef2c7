"Reranking: parity at the published widths, what cannot be judged, and candidates of a model that is none"
import importlib, importlib.util, json, math, shutil, sys, types
from pathlib import Path
import pytest, torch
from soundlm import hub
from soundlm.core import AudioError, HubError, SoundlmError, SoundlmWarning
from soundlm.music import rerank as R
from soundlm.music.corpus import SynthCaps
import parts
from reference import borrowed

prompts = ['techno beat with a synth lead', 'relaxing piano with rain', 'heavy metal guitar riff']
SR = 32000
def noise(seconds=1., seed=0, level=.1): return torch.randn(1, int(seconds*SR), generator=torch.Generator().manual_seed(seed))*level

@pytest.fixture(scope='module')
def judge(): return hub.load('clap-tiny')

@pytest.fixture(scope='module')
def published(tmp_path_factory): return parts.build('laion/larger_clap_music', tmp_path_factory.mktemp('published'))

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "The published format with few numbers, to be broken"
    p = tmp_path_factory.mktemp('small')/'clap'
    R.clap_tiny(R.clap_tokenizer(prompts, 300)).save(p, 'card')
    return p

# parity
def test_parity_at_published_widths(published):
    from transformers import ClapFeatureExtractor, ClapModel
    ours,theirs = hub.load(str(published)),ClapModel.from_pretrained(published).eval()
    e = ClapFeatureExtractor.from_pretrained(published)
    assert (ours.dim, ours.sample_rate, ours.samples, ours.max_tokens) == (512, 48000, 480000, 77)
    assert (ours.model.config.audio_config.hidden_size, ours.model.config.text_config.hidden_size) == (1024, 768)
    wavs = [ours.ready(noise(s), SR) for s in (3, 10)]
    feats = e([w[0].numpy() for w in wavs], sampling_rate=48000, return_tensors='pt')
    ids,mask = ours.tokenize(prompts)
    with torch.no_grad(): t,a = theirs.get_text_features(ids, mask).pooler_output, theirs.get_audio_features(**feats).pooler_output
    torch.testing.assert_close(ours.text(prompts), t, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.audio(wavs, 48000), a, atol=1e-5, rtol=1e-5)
    for w,f in zip(wavs, feats['input_features']): torch.testing.assert_close(ours.mels(R.windows(w, ours.samples))[0], f[0], atol=1e-3, rtol=0)

def renamed(state):
    "An HTSAT of laion_clap under the names of transformers"
    pairs = [('attn.proj','attention.output.dense'), ('attn.','attention.self.'), ('mlp.fc1','intermediate.dense'), ('mlp.fc2','output.dense'),
        ('norm1','layernorm_before'), ('norm2','layernorm_after'), ('bn0','batch_norm')]
    res = {}
    for k,v in state.items():
        for a,b in pairs: k = k.replace(a, b)
        if 'qkv' in k: res |= {k.replace('qkv', n): x for n,x in zip(('query','key','value'), v.chunk(3))}
        else: res[k] = v
    return res

def test_parity_with_laion_clap(judge):
    "The authors' own audio tower, waveform to vector, without the package's `__init__`, which downloads"
    with borrowed('laion_clap', ['','clap_module'], ('torchvision','torchvision.ops','torchvision.ops.misc','h5py')): htsat = importlib.import_module('laion_clap.clap_module.htsat')
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel
    cfg = types.SimpleNamespace(sample_rate=48000, window_size=1024, hop_size=480, mel_bins=64, fmin=50, fmax=14000, class_num=7, enable_repeat_mode=False)
    sizes = dict(depths=[1,1,2,1], window_size=8)
    torch.manual_seed(0)
    theirs = htsat.HTSAT_Swin_Transformer(embed_dim=16, num_heads=[2,2,4,4], num_classes=7, config=cfg, **sizes).eval()
    sound = dict(patch_embeds_hidden_size=16, hidden_size=128, num_attention_heads=[2,2,4,4], **sizes)
    model = ClapModel(ClapConfig(text_config=dict(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32), audio_config=sound)).eval()
    missing = model.audio_model.audio_encoder.load_state_dict(renamed(theirs.state_dict()), strict=False).missing_keys
    assert [k for k in missing if 'relative_position_index' not in k] == []
    ours = R.Clap(model, judge.tokenizer, ClapFeatureExtractor(frequency_min=50, truncation='rand_trunc'))
    x = R.windows(ours.ready(noise(4), SR), ours.samples)
    with torch.no_grad(): want,got = theirs({'waveform':x}, device='cpu')['embedding'], model.audio_model(input_features=ours.mels(x)[:,None]).pooler_output
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)

def test_bin_weights(small, tmp_path):
    p = shutil.copytree(small, tmp_path/'old')
    torch.save(hub.read_weights(p), p/'pytorch_model.bin'); (p/'model.safetensors').unlink()
    assert torch.equal(hub.load(str(p)).text(prompts), hub.load(str(small)).text(prompts))

def test_twin_is_a_transformers_folder(judge):
    from transformers import AutoTokenizer, ClapModel
    folder = hub.path('clap-tiny')
    batch = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors='pt')
    model = ClapModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad(): want = model.get_text_features(batch['input_ids'], batch['attention_mask']).pooler_output
    torch.testing.assert_close(judge.text(prompts), want, atol=1e-5, rtol=1e-5)

def test_twin_fits(judge):
    assert (hub.path('clap-tiny')/'model.safetensors').stat().st_size < 3*2**20 and sum(p.numel() for p in judge.parameters()) <= 1.5e6
    assert judge.tokenizer.get_vocab_size() <= 1000
    assert all(torch.equal(v, v.half().float()) for v in judge.model.state_dict().values() if v.is_floating_point())
    assert not any(p.requires_grad for p in judge.parameters())

# folders that are none
def broken(small, tmp_path, **files):
    p = shutil.copytree(small, tmp_path/'broken')
    for name,change in files.items():
        f = p/(name+'.json')
        f.unlink() if change is None else f.write_text(json.dumps(json.loads(f.read_text())|change))
    return p

def test_fusion_is_refused(small, tmp_path):
    config = json.loads((small/'config.json').read_text())
    with pytest.raises(HubError, match='without'): hub.load(str(broken(small, tmp_path, config=dict(audio_config=config['audio_config']|dict(enable_fusion=True)))))

def test_missing_files(small, tmp_path):
    with pytest.raises(HubError, match='preprocessor_config'): hub.load(str(broken(small, tmp_path, preprocessor_config=None)))
    shutil.rmtree(tmp_path/'broken')
    with pytest.raises(HubError, match='tokenizer.json'): hub.load(str(broken(small, tmp_path, tokenizer=None)))

@pytest.mark.parametrize('lost', ['text_projection.linear1.weight', 'audio_model.audio_encoder.batch_norm.running_mean'])
def test_incomplete_weights(small, tmp_path, lost):
    p = broken(small, tmp_path)
    state = hub.read_weights(p); del state[lost]
    (p/'model.safetensors').write_bytes(hub.state_bytes(state))
    with pytest.raises(HubError, match=lost): hub.load(str(p))

def test_other_sizes(small, tmp_path):
    with pytest.raises(HubError, match='do not fit'): hub.load(str(broken(small, tmp_path, config=dict(projection_dim=64))))

# what cannot be judged
@pytest.mark.parametrize('wav', [torch.zeros(1,SR), torch.full((1,SR), math.nan), torch.full((1,SR), math.inf), torch.zeros(1,0), torch.ones(2,SR), torch.ones(SR)])
def test_no_sound(judge, wav):
    with pytest.raises(AudioError): judge.audio([noise(), wav], SR)

@pytest.mark.parametrize('rate', [None, 0, -32000, 44100.5, 'fast', True, 100])
def test_odd_rates(judge, rate):
    with pytest.raises(AudioError, match='sample rate'): judge.audio([noise()], rate)

@pytest.mark.parametrize('captions', [[''], ['  '], 'techno', [None]])
def test_no_captions(judge, captions):
    with pytest.raises(SoundlmError): judge.text(captions)

def test_counts_must_agree(judge):
    with pytest.raises(SoundlmError, match='as many'): judge.score([noise()], SR, prompts)
    assert judge.text([]).shape == judge.audio([], SR).shape == (0, judge.dim)

def test_any_text(judge):
    for text in (''.join(map(chr, range(i, min(i+32, 127)))) for i in (32,64,96)):
        assert judge.tokenizer.decode(judge.tokenizer.encode(text).ids).strip() == text.lower().strip()
    assert torch.isfinite(judge.text([text, 'ÄÖÜ 音楽 ♫'])).all()

def test_long_text_is_cut_and_said(judge):
    with pytest.warns(SoundlmWarning, match='77 tokens'): a = judge.text(['blues '*200])
    assert torch.isfinite(a).all()

# the same clip, the same point
def test_deterministic_and_batch_invariant(judge):
    wavs = [noise(s, i) for i,s in enumerate((.5, 2, 6, 7, 15))]
    a = judge.audio(wavs, SR, batch=2)
    assert torch.equal(a, judge.audio(wavs, SR, batch=2))
    torch.testing.assert_close(a, torch.cat([judge.audio([w], SR) for w in wavs]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.norm(dim=-1), torch.ones(5)); torch.testing.assert_close(judge.text(prompts).norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(judge.text(prompts)[1:2], judge.text(prompts[1:2]), atol=1e-5, rtol=1e-5)
    assert torch.equal(judge.audio(torch.stack(wavs[2:3]), SR), judge.audio(wavs[2:3], SR))

def test_other_rates_hear_the_same(judge):
    from soundlm.audio import resample
    w = SynthCaps('test')[0].wav()
    a,b = judge.audio([w], SR),judge.audio([resample(w, SR, 44100)], 44100)
    assert (a*b).sum() > .98

@pytest.mark.parametrize('m', [1, 3, 7, 8, 9, 16, 17, 100])
def test_windows_cover_all(m):
    x = torch.arange(1., m+1)[None]
    w = R.windows(x, 8)
    assert w.shape[1]==8 and set(x[0].tolist()) <= set(w.flatten().tolist())
    if m<=8: assert len(w)==1 and (w!=0).sum()==m*(8//m)

def test_own_caption_beats_another_style(judge):
    clips = SynthCaps('test')[:32]
    own = [R.corpus.compose_caption(c.attributes, R.core.rng(c.id), R.full_mentions(c.attributes))[0] for c in clips]
    rival = [next(t for t,d in zip(own[i+1:]+own, clips[i+1:]+clips) if d.attributes['style']!=c.attributes['style']) for i,c in enumerate(clips)]
    wavs = [c.wav() for c in clips]
    assert (judge.score(wavs, SR, own) > judge.score(wavs, SR, rival)).float().mean() >= .9

# training
def test_false_negatives_do_not_count():
    clips = SynthCaps('train')[:40]
    facts = torch.tensor([R.facts_of(c.attributes) for c in clips])
    for c,f in zip(clips, facts.tolist()): # an attribute that is said is true of its own clip
        text,m = R.corpus.compose_caption(c.attributes, R.core.rng(c.id), R.mentions(c.attributes, R.core.rng(c.id)))
        said = list(R.what_is_said(c.attributes, m, text).values())
        assert all(s in (0,t) for s,t in zip(said, f))
    vague = torch.zeros(1, facts.shape[1], dtype=torch.long)
    assert R.true_of(vague, facts).all() and R.true_of(facts, facts).diag().all()
    x = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert R.contrast(x, x, torch.ones(4,4).bool(), (5.,5.)).abs() < 1e-6

def test_recipe(tmp_path, monkeypatch):
    monkeypatch.delenv('SOUNDLM_DATA', raising=False)
    monkeypatch.setenv('SOUNDLM_MAX_STEPS', '2')
    kw = dict(clips=4, coded=1, valid=2, cache=tmp_path/'mels')
    clap,run = R.train_clap(tmp_path/'run', **kw)
    assert run.steps==2 and math.isfinite(run.val_loss) and not clap.training
    with pytest.raises(SoundlmError, match='resume'): R.train_clap(tmp_path/'run', **kw)
    clap.save(tmp_path/'part', R.clap_card(clap, run, R.clap_facts(4, 1), n=6))
    again = hub.load(str(tmp_path/'part'))
    assert torch.equal(again.text(prompts), clap.text(prompts))
    assert 'retrieval@10' in (tmp_path/'part'/'README.md').read_text('utf-8')

# candidates
class Model(torch.nn.Module):
    "Writes noise that only its seed and its prompt decide"
    name,codec = 'noise', types.SimpleNamespace(sample_rate=SR)
    config = types.SimpleNamespace(dim=64, n_layers=2, frame_rate=50., text_len=8, codebooks=4, codebook_size=16)
    layout = types.SimpleNamespace(length=lambda t: t+3)
    def __init__(self, mute=()):
        super().__init__()
        self.w,self.mute,self.calls = torch.nn.Parameter(torch.zeros(1)), mute, []
    @torch.inference_mode()
    def music(self, prompts, seconds=6., seed=0, sampler=None, style=None):
        self.calls.append((len(prompts), seed, style))
        return torch.stack([noise(seconds, (seed+i)*100+len(p), 0. if seed+i in self.mute else .1) for i,p in enumerate(prompts)])

def test_candidates(judge):
    made = R.candidates(Model(), prompts, 4, judge, 1., seed=5)
    assert [len(g) for g in made]==[4]*3 and all([c.score for c in g]==sorted([c.score for c in g], reverse=True) for g in made)
    assert sorted(c.seed for g in made for c in g)==list(range(5, 17)) and [g[0].prompt for g in made]==prompts
    c = made[1][0]
    assert c.score==pytest.approx(judge.score([c.wav], SR, [c.prompt]).item(), abs=1e-5) and json.dumps(c.row())
    split = R.candidates(m := Model(), prompts, 4, judge, 1., seed=5, batch=5)
    assert [o[:2] for o in m.calls]==[(5,5), (5,10), (2,15)]
    for a,b in zip(made, split): assert all(torch.equal(x.wav, y.wav) and x.seed==y.seed for x,y in zip(a, b))

def test_values_of_prompts(judge):
    R.candidates(m := Model(), prompts, 2, judge, 1., batch=4, style=['a','b','c'])
    assert [o[2] for o in m.calls]==[['a','a','b','b'], ['c','c']]

def test_candidates_without_sound_come_last(judge):
    group = R.candidates(Model(mute=(0,)), prompts[:1], 3, judge, 1.)[0]
    assert (group[-1].seed, group[-1].score, group[-1].fault)==(0, -1., 'silent')
    assert R.candidates(Model(mute=(0,)), prompts[:1], 1, judge, 1.)[0][0].fault=='silent'

@pytest.mark.parametrize('n', [0, -1, 1.5, None, True, '4'])
def test_no_candidates(judge, n):
    with pytest.raises(SoundlmError, match='at least 1'): R.candidates(Model(), prompts, n, judge, 1.)

def test_beyond_memory(judge):
    with pytest.raises(SoundlmError, match='ask for fewer'): R.candidates(Model(), prompts, 10**8, judge, 6.)
    m = Model()
    assert R.room(m, 8, 6., free=2**30) > R.room(m, 8, 12., free=2**30) >= 1
    with pytest.raises(SoundlmError, match='at most'): R.room(m, 10**4, 6., free=2**30)
    with pytest.raises(SoundlmError, match='shorter'): R.room(m, 1, .01, free=2**13)

def test_cache_is_what_is_counted():
    "The estimate against tensors that are really there"
    model = hub.load('music-a')
    places = model.config.text_len+1+model.layout.length(100)
    cache = model.new_cache(2, places)
    held = (cache.k.numel()+cache.v.numel())*cache.k.element_size()
    assert held <= R.row_bytes(model, 2.)[0] <= 1.5*held

def test_best_of():
    assert R.best_of(torch.tensor([[.1,.3],[.2,.2]])).tolist()==[1,0]
    for bad in (torch.zeros(3), torch.zeros(2,0), torch.full((1,2), math.nan)):
        with pytest.raises(SoundlmError): R.best_of(bad)

def test_report(judge):
    probe = hub.load('probe-music')
    res = R.rerank_report(Model(mute=(1,)), judge, probe, SynthCaps('test')[:4], n=3, seconds=1.)
    assert json.loads(json.dumps(res))==res and len(res['rows'])==12 and sum(r['first'] for r in res['rows'])==4
    score = res['table'][0]
    assert score['measure']=='score' and score['gain']>=0 and score['low']<=score['gain']<=score['high']

def test_paired_gain():
    g = R.gain([1,1,1,1], [0,1,0,1])
    assert (g['best'], g['base'], g['gain'], g['prompts'])==(1., .5, .5, 4)
    with pytest.raises(SoundlmError): R.gain([], [])
