"The tiny Llama, its tokenizer and its GGUF: parity with the readers, and what a notebook cell cannot hold"
import json, math, shutil
from functools import lru_cache
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from soundlm import hub
from soundlm.core import HubError, SoundlmError
from soundlm.omni.corpus import digits
from soundlm.projector.features import FrozenLM
from soundlm.projector.llama import (NextWord, Rows, digit_strings, llama_specials, llama_tiny, llama_tokenizer, permute, perplexity, save_llama,
    texts, train_llama, write_gguf)

any_text = st.text(st.characters(exclude_categories=['Cs']), max_size=60)

@lru_cache
def shipped(): return hub.load('llama-tiny')

@pytest.fixture(scope='module')
def llm(): return shipped()

# the shipped part
def test_shipped_part_is_small_and_as_the_card_says(zoo):
    folder = zoo('llama-tiny')
    assert sum(o.stat().st_size for o in folder.iterdir()) < 1.25*2**20
    card = (folder/'README.md').read_text('utf-8')
    assert '574,336' in card and all(f'| {k} | ' in card for k in ('written', 'plain', 'digits'))

def test_shipped_perplexity(llm, data):
    "What its card says, measured again on the same held-out texts"
    data('text', 'ljspeech_transcripts.csv')
    rows = [l.split('|') for l in (hub.path('llama-tiny')/'README.md').read_text('utf-8').splitlines()]
    said = {r[1].strip(): float(r[4]) for r in rows if len(r) > 6 and r[1].strip() in ('written', 'plain', 'digits')}
    held = texts('test', strings=1.)
    for k, want in said.items(): assert perplexity(llm, held[k], draws=10)['ppl'] == pytest.approx(want, rel=1e-3)
    train = texts('train')
    assert not set(train['written']) & set(held['written']) and not set(train['plain']) & set(held['plain'])

def test_weights_are_a_llamas_in_fp16(llm, zoo):
    from transformers import AutoModelForCausalLM, LlamaForCausalLM
    theirs = AutoModelForCausalLM.from_pretrained(zoo('llama-tiny'), dtype=torch.float32)
    assert isinstance(theirs, LlamaForCausalLM) and all(torch.equal(v, v.half().float()) for v in theirs.state_dict().values())
    assert theirs.config.tie_word_embeddings and theirs.config.rms_norm_eps == 1e-5
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (llm.tokenizer.bos_token_id, llm.tokenizer.eos_token_id)

def test_every_layer_tells_the_digit(llm):
    "A linear probe, as in the notebook: a projector can only say what is there"
    f = llm.read(list(dict.fromkeys(digit_strings(400, 'probe test'))), layer='all')
    X, y = torch.cat([o.states for o in f]), torch.tensor([digits.index(w) for o in f for w in o.text.split()])
    half = len(X)//2
    for k in range(llm.n_layers + 1):
        A = torch.cat([X[:, k], torch.ones(len(X), 1)], 1)
        W = torch.linalg.solve(A[:half].T@A[:half] + .1*torch.eye(A.shape[1]), A[:half].T@torch.nn.functional.one_hot(y[:half], 10).float())
        assert ((A[half:]@W).argmax(1) == y[half:]).float().mean() > .97

# the tokenizer
@given(any_text)
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(t):
    tok = shipped().tokenizer
    ids = tok(t, add_special_tokens=False, split_special_tokens=True)['input_ids']
    assert tok.decode(ids, clean_up_tokenization_spaces=False) == t
    assert not set(ids) & set(range(len(tok) - len(llama_specials), len(tok)))

def test_words_that_matter_are_short(llm):
    tok = llm.tokenizer
    assert all(len(tok(o, add_special_tokens=False)['input_ids']) == 1 for d in digits for o in (d, f' {d}'))
    assert tok('three')['input_ids'][0] == tok.bos_token_id and tok('three', 'one')['input_ids'].count(tok.bos_token_id) == 2

def test_tokenizer_survives_saving(tmp_path, llm):
    from transformers import AutoTokenizer
    tok = llama_tokenizer(['three seven one', 'Hello you'], 300)
    save_llama(tmp_path/'m', random_llama(tok), tok, '')
    back = AutoTokenizer.from_pretrained(tmp_path/'m')
    for t in ('three seven', "It's 12345 ü"): assert back(t)['input_ids'] == tok(t)['input_ids']
    assert back.chat_template == tok.chat_template and (back.bos_token, back.eos_token, back.pad_token, back.padding_side) == (*llama_specials[:2], llama_specials[1], 'right')
    assert json.loads((tmp_path/'m'/'tokenizer_config.json').read_text())['tokenizer_class'] == 'PreTrainedTokenizerFast' # a name that transformers 4 and 5 know

def random_llama(tok, **kw):
    from transformers import LlamaForCausalLM
    torch.manual_seed(0)
    ends = dict(vocab_size=len(tok), bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    return LlamaForCausalLM(llama_tiny(**dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2) | ends | kw)).eval()

# training
def test_loss_counts_real_ids_once(llm):
    rows = Rows(['three', 'three seven one two', 'one'], llm.tokenizer, 4096)
    assert len(rows) == 1
    b = rows.batch([0])
    out = NextWord(llm.model).loss(b)
    one = [NextWord(llm.model).loss(dict(ids=b['ids'][i:i + 1, :n], n=b['n'][i:i + 1])) for i, n in enumerate(b['n'].tolist())]
    assert out['tokens'] == sum(o['tokens'] for o in one)
    torch.testing.assert_close(out['loss'], sum(o['loss']*o['tokens'] for o in one)/out['tokens'])

@given(st.integers(16, 400), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_batches_hold_every_text_once(size, n):
    rows = Rows(digit_strings(n, 'rows'), shipped().tokenizer, size)
    assert sorted(i for p in rows.parts for i in p) == list(range(n)) and all(rows.parts)
    assert all(len(p) == 1 or len(p)*max(len(rows.rows[i]) for i in p) <= size*1.5 for p in rows.parts)

def test_perplexity_is_exp_of_the_mean(llm):
    ids = llm.tokenizer('three seven one', return_tensors='pt')['input_ids']
    with torch.no_grad(): want = math.exp(llm.model(input_ids=ids, labels=ids).loss)
    got = perplexity(llm, ['three seven one'], draws=10)
    assert got['ppl'] == pytest.approx(want, rel=1e-4) and got['tokens'] == 3 and got['n'] == 1
    assert perplexity(llm, ['three seven one'], end=True, draws=10)['tokens'] == 4

def test_counting_is_counting():
    assert all(b == (a + 1) % 10 for t in digit_strings(50, 'c', counting=1.) for a, b in zip(*[[digits.index(w) for w in t.split()][i:] for i in (0, 1)]))
    words = [w for t in digit_strings(3000, 'even') for w in t.split()]
    assert all(abs(words.count(d)/len(words) - .1) < .02 for d in digits)

def test_a_small_run_learns_and_repeats(tmp_path):
    read = {s: dict(written=['Three, seven.']*8, plain=['three seven']*8, digits=digit_strings(60, s)) for s in ('train', 'valid')}
    a, b = (train_llama(tmp_path/n, steps=12, batch=256, data=read) for n in 'ab')
    assert hub.weights_sha(a) == hub.weights_sha(b)
    m = FrozenLM.from_folder(a)
    assert perplexity(m, ['three seven'], draws=10)['ppl'] < .5*m.vocab

# GGUF
def test_permute_is_undone_by_transformers():
    w = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    back = permute(w, 3).reshape(3, 2, 2, 5).swapaxes(1, 2).reshape(w.shape)
    np.testing.assert_array_equal(back, w)

@pytest.mark.parametrize('kw', [dict(tie_word_embeddings=False), dict(num_key_value_heads=4), dict(num_key_value_heads=1), dict(head_dim=32), dict(rope_theta=500000.)], ids=str)
def test_gguf_of_other_llamas(tmp_path, kw):
    "Untied, without grouped heads, with wider heads, another base of positions: the same logits from the file"
    tok = llama_tokenizer(['three seven one'], 288)
    model = random_llama(tok, **kw)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1: p.normal_(std=.1)
    model.save_pretrained(tmp_path/'m'); tok.save_pretrained(tmp_path/'m')
    theirs = FrozenLM.from_gguf(write_gguf(tmp_path/'m', tmp_path/'m.gguf'))
    ids = torch.tensor([[1, 5, 9, 33, 12]])
    with torch.no_grad(): torch.testing.assert_close(theirs.model(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)

def test_gguf_refuses_what_it_cannot_write(tmp_path, llm):
    folder = shutil.copytree(hub.path('llama-tiny'), tmp_path/'m')
    tok = json.loads((folder/'tokenizer.json').read_text())
    tok['pre_tokenizer'] = dict(type='Metaspace', replacement='▁', prepend_scheme='always', split=True)
    (folder/'tokenizer.json').write_text(json.dumps(tok))
    with pytest.raises(SoundlmError, match='byte-level BPE'): write_gguf(folder, tmp_path/'x.gguf')
    with pytest.raises(HubError): write_gguf(tmp_path/'none', tmp_path/'x.gguf')
    assert not (tmp_path/'x.gguf').exists()
    narrow = llama_tokenizer(['a'], 280)
    random_llama(narrow, hidden_size=48, num_attention_heads=4, num_key_value_heads=2).save_pretrained(tmp_path/'n'); narrow.save_pretrained(tmp_path/'n')
    with pytest.raises(SoundlmError, match='blocks of 32'): write_gguf(tmp_path/'n', tmp_path/'x.gguf', 'Q8_0')
