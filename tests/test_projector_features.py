"States of frozen language models: readers that agree, spans of any text, faults, and a cache that belongs to one model"
import importlib.util, json, os, shutil, subprocess, sys, tempfile
from functools import lru_cache
from types import SimpleNamespace
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from soundlm import hub
from soundlm.core import HubError, SoundlmError
from soundlm.projector import features
from soundlm.projector.decoder import weights_hash
from soundlm.projector.features import FeatureCache, Features, FrozenLM, LlamaCppLM, load_llm, partition
from soundlm.projector.llama import digit_strings, gguf_module, llama_tiny, write_gguf

odd = ['three seven one', "It's 1984, isn't it?", 'Äpfel  und\n\nÖl…', '日本語 12345678', '🎵🎵 <|eot_id|>', "WE'RE\t here ", 'ﬁ e\u0301 \u200d', ' leading', 'x' * 200]
words = st.text(st.characters(exclude_categories=['Cs']), min_size=1, max_size=50).filter(lambda t: t.strip())
llama_cpp = pytest.mark.skipif(importlib.util.find_spec('llama_cpp') is None and not os.environ.get('CI'), reason='needs llama-cpp-python: pip install "soundlm[llamacpp]" builds it')

@lru_cache
def load_once(): return hub.load('llama-tiny')

@pytest.fixture(scope='module')
def llm(): return load_once()

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    top = tmp_path_factory.mktemp('gguf')
    return {k: write_gguf(hub.path('llama-tiny'), top/f'{k}.gguf', k) for k in ('F32', 'F16', 'Q8_0')}

def lowest(a, b):
    "The lowest cosine of two readers' states; ids and spans have to be equal"
    assert [(o.ids, o.spans) for o in a] == [(o.ids, o.spans) for o in b]
    return torch.nn.functional.cosine_similarity(torch.cat([o.states for o in a]), torch.cat([o.states for o in b])).min().item()

# states
def test_states_are_transformers_own(llm, zoo):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tok, model = AutoTokenizer.from_pretrained(zoo('llama-tiny')), AutoModelForCausalLM.from_pretrained(zoo('llama-tiny'), dtype=torch.float32).eval()
    for f, all_ in zip(llm.read(odd), llm.read(odd, layer='all')):
        ids = tok(f.text, return_tensors='pt', split_special_tokens=True)['input_ids']
        assert ids[0, 0] == tok.bos_token_id and ids[0, 1:].tolist() == f.ids
        with torch.no_grad(): hs = model(input_ids=ids, output_hidden_states=True).hidden_states
        torch.testing.assert_close(f.states, hs[-1][0, 1:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(all_.states, torch.stack(hs, 2)[0, 1:], atol=1e-3, rtol=1e-3)

def test_last_layer_gives_the_logits(llm):
    "After the final norm: the head on top of it is the model"
    f = llm.read(['three seven'])[0]
    ids = torch.tensor([[llm.tokenizer.bos_token_id, *f.ids]])
    with torch.no_grad(): torch.testing.assert_close(llm.model.lm_head(f.states), llm.model(input_ids=ids).logits[0, 1:], atol=1e-4, rtol=1e-4)

def test_each_layer_alone(llm):
    every = llm.read(odd[:2], layer='all')
    for k in range(llm.n_layers + 1):
        for f, a in zip(llm.read(odd[:2], layer=k), every): assert torch.equal(f.states, a.states[:, k])

@pytest.mark.parametrize('batch', [1, 3, 16])
def test_batches_change_nothing(llm, batch):
    one = [llm.read([t])[0].states for t in odd]
    for a, b in zip(one, llm.read(odd, batch=batch)): torch.testing.assert_close(a, b.states, atol=1e-4, rtol=1e-4)

def test_chat_is_the_same_text_elsewhere(llm):
    a, b = llm.read(odd), llm.read(odd, chat=True)
    assert [(o.ids, o.spans) for o in a] == [(o.ids, o.spans) for o in b] and lowest(a, b) < .9
    said = llm.tokenizer.apply_chat_template([dict(role='user', content='Say it.'), dict(role='assistant', content='three seven')], tokenize=False)
    before, after = llm.frame(True)
    assert before + llm.token_ids('three seven')[0] + after == llm.tokenizer(said, add_special_tokens=False)['input_ids']

def test_frozen(llm):
    was = llm.weights_hash()
    assert not llm.model.training and not any(p.requires_grad for p in llm.parameters()) and not llm.read(['three'])[0].states.requires_grad
    torch.nn.Linear(llm.dim, 2)(llm.read(['three'])[0].states).sum().backward()
    assert llm.weights_hash() == was == weights_hash(hub.load('llama-tiny').model) and all(p.grad is None for p in llm.parameters())
    changed = FrozenLM.from_folder(hub.path('llama-tiny'))
    with torch.no_grad(): next(changed.model.parameters())[0, 0] += 1e-3
    assert changed.weights_hash() != was

def test_size(llm, files):
    assert llm.size == load_llm(files['Q8_0']).size == 574_336 # a tied output is counted once
    packed = torch.nn.Parameter(torch.zeros(8*4//2, 1, dtype=torch.uint8), requires_grad=False) # bitsandbytes: two weights in a byte, their shape beside them
    packed.quant_state = SimpleNamespace(shape=torch.Size([8, 4]))
    model = in_memory(llm, 0)
    whole, layer = model.size, model.model.model.layers[0].self_attn
    n = layer.o_proj.weight.numel()
    layer.o_proj.weight = packed
    assert model.size == whole - n + 32

@llama_cpp
def test_size_of_a_file(llm, files):
    for p in files.values(): assert LlamaCppLM(p).size == llm.size

# spans
@given(words)
@settings(max_examples=150, deadline=None)
def test_every_character_has_one_token(t):
    llm = load_once()
    ids, spans = llm.token_ids(t)
    assert len(ids) == len(spans) and ''.join(t[a:b] for a, b in spans) == t
    assert all(a <= b for a, b in spans) and spans[0][0] == 0 and spans[-1][1] == len(t)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12), st.integers(1, 30))
def test_partition_of_anything(offsets, n):
    spans = partition(offsets, n)
    assert spans[0][0] == 0 and spans[-1][1] == n and all(a[1] == b[0] for a, b in zip(spans, spans[1:])) and all(a <= b <= n for a, b in spans)

# readers
@pytest.mark.parametrize('kind,least', [('F32', .99999), ('F16', .99999), ('Q8_0', .99)])
@pytest.mark.parametrize('chat', [False, True])
def test_gguf_agrees(llm, files, kind, least, chat):
    theirs = load_llm(files[kind])
    assert lowest(llm.read(odd, chat=chat), theirs.read(odd, chat=chat)) > least
    assert (theirs.weights_hash() == llm.weights_hash()) == (kind != 'Q8_0') # the shipped weights are fp16

@llama_cpp
@pytest.mark.parametrize('kind,least', [('F32', .999), ('F16', .999), ('Q8_0', .99)])
@pytest.mark.parametrize('chat', [False, True])
def test_llama_cpp_agrees(llm, files, kind, least, chat):
    ours, theirs = llm.read(odd, chat=chat), load_llm(files[kind], backend='llama.cpp').read(odd, chat=chat)
    assert lowest(ours, theirs) > least
    length = [torch.cat([o.states for o in f]).norm(dim=1) for f in (ours, theirs)]
    torch.testing.assert_close(length[0], length[1], rtol=.05, atol=.05) # not scaled to length 1

@llama_cpp
@given(words)
@settings(max_examples=150, deadline=None)
def test_llama_cpp_reads_the_same_ids(t):
    assert load_cpp().token_ids(t) == load_once().token_ids(t)

@lru_cache
def load_cpp():
    with tempfile.TemporaryDirectory() as top: return LlamaCppLM(write_gguf(hub.path('llama-tiny'), os.path.join(top, 'm.gguf')))

@llama_cpp
def test_llama_cpp_has_one_layer(files):
    m = load_llm(files['F32'], backend='llama.cpp')
    assert m.read(['three'], layer=m.n_layers)[0].states.shape == (1, m.dim)
    for layer in (0, 1, 'all'):
        with pytest.raises(SoundlmError, match='the last one only'): m.read(['three'], layer=layer)
    for bad in ([''], ['w '*600], 'three'):
        with pytest.raises(SoundlmError): m.read(bad)
    assert m.frame()[0] == [load_once().tokenizer.bos_token_id] and m.source == load_once().sha

def sentencepiece_llama(folder):
    "A random Llama with a vocabulary of SentencePiece's kind, bytes included"
    import gguf
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    c = LlamaConfig(vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128)
    w, m = gguf.GGUFWriter(folder/'spm.gguf', 'llama'), LlamaForCausalLM(c)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    tokens = ['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256)), '▁', 't', 'h', 'r', 'e', '▁t', 'th', 'ee', 'hree', '▁three', '▁thr', 'ree']
    tokens += [f'▁w{i}' for i in range(320 - len(tokens))]
    w.add_block_count(2), w.add_context_length(128), w.add_embedding_length(64), w.add_feed_forward_length(96), w.add_head_count(4), w.add_head_count_kv(4)
    w.add_layer_norm_rms_eps(c.rms_norm_eps), w.add_rope_dimension_count(16), w.add_vocab_size(320), w.add_tokenizer_model('llama'), w.add_token_list(tokens)
    w.add_token_scores([-float(i) for i in range(320)]), w.add_token_types([2, 3, 3] + [6]*256 + [1]*61), w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_add_bos_token(True)
    for k, v in m.state_dict().items(): w.add_tensor(names.get_name(k, try_suffixes=('.weight',)), v.float().numpy())
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    return folder/'spm.gguf'

@llama_cpp
def test_a_blank_in_front_is_not_the_texts(tmp_path):
    "SentencePiece's vocabularies put a blank before a text; it has no characters in it"
    m = load_llm(sentencepiece_llama(tmp_path), backend='llama.cpp')
    for t in ('three', 'three ü three', ' three'):
        ids, spans = m.token_ids(t)
        assert ''.join(t[a:b] for a, b in spans) == t and len(m.read([t])[0].states) == len(ids)

# faults
def test_faults_of_files(tmp_path, files):
    data = files['F32'].read_bytes()
    for n, part in dict(half=data[:len(data)//2], end=data[:-100], head=data[:500], tiny=data[:10], none=b'', other=b'PK' + data).items():
        (tmp_path/f'{n}.gguf').write_bytes(part)
        for backend in ('transformers', 'llama.cpp'):
            with pytest.raises(HubError): load_llm(tmp_path/f'{n}.gguf', backend=backend)
    with pytest.raises(HubError, match='none of that name'): load_llm(tmp_path/'missing.gguf')

@pytest.mark.parametrize('backend', ['transformers', 'llama.cpp'])
@pytest.mark.parametrize('lacks', ['general.architecture', 'llama.block_count', 'llama.embedding_length', 'llama.context_length', 'llama.attention.head_count'])
def test_faults_of_headers(tmp_path, lacks, backend):
    "Without one of these transformers would build a Llama of 7 billion parameters"
    w = gguf_module().GGUFWriter(tmp_path/'m.gguf', 'llama')
    w.add_block_count(1), w.add_context_length(64), w.add_embedding_length(32), w.add_head_count(4)
    w.add_tokenizer_model('llama'), w.add_token_list([f'<0x{i:02X}>' for i in range(256)]), w.add_tensor('token_embd.weight', np.zeros((256, 32), np.float32))
    del w.kv_data[0][lacks]
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    with pytest.raises(HubError, match=f'lacks {lacks} in its header'): load_llm(tmp_path/'m.gguf', backend=backend)

def test_no_bytes_no_model(tmp_path):
    "In a process of its own: llama.cpp would end it"
    code = '''
import gguf, numpy as np
from soundlm.core import HubError
from soundlm.projector.features import load_llm
for i, (kind, tokens) in enumerate((('gpt2', ['a', 'b']), ('llama', ['<unk>', '<s>', '▁a']), ('gpt2', []))):
    w = gguf.GGUFWriter(f'm{i}.gguf', 'llama')
    w.add_tokenizer_model(kind)
    if tokens: w.add_token_list(tokens)
    w.add_tensor('token_embd.weight', np.zeros((4, 32), np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    for backend in ('transformers', 'llama.cpp'):
        try: load_llm(f'm{i}.gguf', backend=backend)
        except HubError as e: print(e)
'''
    res = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert res.returncode == 0, res.stderr
    assert (res.stdout.count('byte tokens'), res.stdout.count('no vocabulary')) == (4, 2)

def test_faults_of_folders(tmp_path):
    for n, change in dict(cut=lambda p: (p/'model.safetensors').write_bytes((p/'model.safetensors').read_bytes()[:5000]), untold=lambda p: (p/'tokenizer.json').unlink(),
                          odd=lambda p: (p/'config.json').write_text('{"model_type":"vit"}'), empty=lambda p: (p/'model.safetensors').unlink()).items():
        change(shutil.copytree(hub.path('llama-tiny'), tmp_path/n))
        with pytest.raises(HubError): load_llm(str(tmp_path/n))

def test_faults_of_texts(llm):
    for bad in ([''], [' \n'], [None], [3], ['w '*600], ['half \ud83c'], 'three'):
        with pytest.raises(SoundlmError): llm.read(bad)
    for layer in (4, -2, 'last', 1.5, None):
        with pytest.raises(SoundlmError, match='layer'): llm.read(['three'], layer=layer)
    assert llm.read([]) == []

def test_gated_says_how(monkeypatch):
    "The hub's refusal, as its client raises it, becomes a sentence about licence and login"
    from huggingface_hub.errors import GatedRepoError
    def refuse(*args, **kw): raise GatedRepoError.__new__(GatedRepoError)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr('huggingface_hub.HfApi.model_info', refuse)
    monkeypatch.setattr('huggingface_hub.hf_hub_download', refuse)
    for name in ('meta-llama/Llama-3.1-8B-Instruct', 'meta-llama/Llama-3.1-8B-Instruct/model.gguf'):
        with pytest.raises(HubError, match='accept its licence.*hf auth login.*llama-tiny'): load_llm(name)

def test_bits_need_a_gpu_and_bitsandbytes(monkeypatch):
    with pytest.raises(SoundlmError, match='NVIDIA'): load_llm('llama-tiny', bits=4)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None)
    with pytest.raises(SoundlmError, match='pip install bitsandbytes'): features.bits_config(4, torch.device('cuda'))

# the cache
def test_cache_reads_once(llm, tmp_path, monkeypatch):
    cache, texts = FeatureCache(llm, tmp_path/'c'), digit_strings(40, 'cache')
    first = cache.read(texts + texts[:3], part=16)
    def never(*a, **k): raise AssertionError('read again')
    monkeypatch.setattr(FrozenLM, 'read', never)
    for c in (cache, FeatureCache(llm, tmp_path/'c'), FeatureCache.open(tmp_path/'c', llm.sha)):
        for a, b in zip(first, c.read(texts + texts[:3])): assert (a.text, a.ids, a.spans) == (b.text, b.ids, b.spans) and torch.equal(a.states, b.states)
    assert [o.text for o in first] == texts + texts[:3] and len(list((tmp_path/'c').glob('*.safetensors'))) > 1

def test_cache_is_close_and_exact_if_asked(llm, tmp_path):
    texts, real = odd, llm.read(odd, layer='all')
    for dtype, tol in (('float16', 2e-3), ('float32', 0)):
        for a, b in zip(real, FeatureCache(llm, tmp_path/dtype, layer='all', dtype=dtype).read(texts)):
            assert b.states.dtype == torch.float32 and (a.states - b.states).norm() <= tol*a.states.norm() + (1e-4 if tol == 0 else 0)*a.states.norm()

def in_memory(llm, seed, **kw):
    "A random Llama that no file holds"
    from transformers import LlamaForCausalLM
    torch.manual_seed(seed)
    return FrozenLM(LlamaForCausalLM(llama_tiny(hidden_size=32, intermediate_size=48, num_hidden_layers=1, **kw)), llm.tokenizer)

def changed(folder, file, **kw):
    "A copy of the shipped model with other entries in one of its JSON files"
    shutil.copytree(hub.path('llama-tiny'), folder)
    (folder/file).write_text(json.dumps(json.loads((folder/file).read_text('utf-8')) | kw), 'utf-8')
    return FrozenLM.from_folder(folder)

def test_cache_of_another_model(llm, files, tmp_path):
    FeatureCache(llm, tmp_path/'c').read(['three'])
    for other, kw in ((load_llm(files['Q8_0']), {}), (FrozenLM.from_folder(hub.path('llama-tiny'), dtype='bfloat16'), {}), (llm, dict(chat=True)), (llm, dict(layer=0)), (llm, dict(dtype='float32'))):
        with pytest.raises(SoundlmError, match='expected those of'): FeatureCache(other, tmp_path/'c', **kw)
    with pytest.raises(SoundlmError, match=f'{llm.sha}.*0123'): FeatureCache.open(tmp_path/'c', '0123')
    assert len({FeatureCache(m, layer=l).folder for m in (llm, load_llm(files['F32'])) for l in (-1, 0)}) == 4

def test_cache_of_models_in_memory(llm, tmp_path):
    a, b = in_memory(llm, 0), in_memory(llm, 1)
    assert a.sha == b.sha == '' and a.name == b.name and FeatureCache(a).folder != FeatureCache(b).folder
    first = FeatureCache(a, tmp_path/'c').read(['three'])[0].states
    with pytest.raises(SoundlmError, match=f'{a.weights_hash()}.*{b.weights_hash()}'): FeatureCache(b, tmp_path/'c')
    assert not torch.allclose(first, FeatureCache(b).read(['three'])[0].states, atol=1e-2)
    same = FrozenLM(in_memory(llm, 0).model, llm.tokenizer, 'another name')
    assert len(FeatureCache(same, tmp_path/'c')) == 1 and FeatureCache.open(tmp_path/'c', a.weights_hash()).meta['sha'] == a.weights_hash()
    with pytest.raises(SoundlmError, match='config'): FeatureCache(in_memory(llm, 0, rms_norm_eps=1e-3), tmp_path/'c')

def test_cache_of_the_same_weights_read_otherwise(llm, tmp_path):
    "One safetensors file, and another config.json, tokenizer.json or chat template beside it"
    rules = json.loads((hub.path('llama-tiny')/'tokenizer.json').read_text('utf-8'))
    first = FeatureCache(llm, tmp_path/'c').read(['three'])[0]
    others = dict(theta=('config', 'config.json', dict(rope_theta=500000.)), eps=('config', 'config.json', dict(rms_norm_eps=1e-2)), lower=('tokenizer', 'tokenizer.json', dict(normalizer=dict(type='Lowercase'))),
        merges=('tokenizer', 'tokenizer.json', dict(model=rules['model'] | dict(merges=rules['model']['merges'][:-100]))), chat=('tokenizer', 'tokenizer_config.json', dict(chat_template='{{ messages[1].content }}')))
    for n, (what, file, kw) in others.items():
        other = changed(tmp_path/n, file, **kw)
        assert other.sha == llm.sha and FeatureCache(other).folder != FeatureCache(llm).folder
        with pytest.raises(SoundlmError, match=f"{what} {llm.settings()[what]}.*{what} {other.settings()[what]}"): FeatureCache(other, tmp_path/'c')
    moved = FrozenLM.from_folder(shutil.copytree(hub.path('llama-tiny'), tmp_path/'moved'))
    moved.tokenizer(['three', 'three one'], padding=True, truncation=True, max_length=8) # what a call leaves behind in the tokenizer is none of its rules
    assert torch.equal(FeatureCache(moved, tmp_path/'c').read(['three'])[0].states, first.states) and len(FeatureCache(moved, tmp_path/'c')) == 1

def test_cache_of_before(llm, tmp_path):
    "A folder that records less than is asked for now, and one that records nothing"
    FeatureCache(llm, tmp_path/'c').read(['three'])
    file = tmp_path/'c'/'features.json'
    said = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in said.items() if k not in ('config', 'tokenizer')}))
    with pytest.raises(SoundlmError, match=f"config not recorded, tokenizer not recorded; expected .*config {said['config']}"): FeatureCache(llm, tmp_path/'c')
    assert len(FeatureCache.open(tmp_path/'c', llm.sha).read(['three'])) == 1
    for text in ('{}', '[]', '3', '{"model": "x"}'):
        file.write_text(text)
        for call in (lambda: FeatureCache(llm, tmp_path/'c'), lambda: FeatureCache.open(tmp_path/'c')):
            with pytest.raises(SoundlmError, match='whose features'): call()
    with pytest.raises(SoundlmError, match='no model'): FeatureCache(None)

def test_cache_faults(llm, tmp_path):
    cache = FeatureCache(llm, tmp_path/'c')
    cache.read(['three'])
    with pytest.raises(SoundlmError, match='not in'): FeatureCache.open(tmp_path/'c').read(['four'])
    with pytest.raises(SoundlmError): cache.read(['five', ''])
    assert len(FeatureCache(llm, tmp_path/'c')) == 1
    part = next((tmp_path/'c').glob('*.safetensors'))
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(SoundlmError, match='damaged'): FeatureCache(llm, tmp_path/'c')
    (tmp_path/'c'/'features.json').write_text('{')
    with pytest.raises(SoundlmError, match='JSON'): FeatureCache(llm, tmp_path/'c')
    big = Features('x', [1], [(0, 1)], torch.full((1, 128), 1e6))
    with pytest.raises(SoundlmError, match='beyond float16'): FeatureCache(llm, tmp_path/'d').write([big])
    assert not list((tmp_path/'d').glob('*.safetensors'))

@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory): monkeypatch.setenv('SOUNDLM_CACHE', str(tmp_path_factory.mktemp('cache')))
