"What the notebook cannot hold: many frames, many shapes, Qwen3-0.6B's heads at full width"
import warnings
from types import SimpleNamespace

import pytest, torch

from soundlm import hub
from soundlm.core import HubError, SoundlmError, SoundlmWarning, TokenError
from soundlm.layout import Frame
from soundlm.omni.model import MultimodalLLM, from_qwen3, left_pad, qwen3_config, to_qwen3
from soundlm.sample import Sampler, generate

V, K = 60, 8 # text rows and codes
greedy = Sampler(temperature=0)

class Tokens:
    "What a model needs of a SNACTokenizer, without a codec"
    def __init__(self, books=3, base=V, K=K):
        self.layout, self.base, self.max_frames = Frame(books, K, end=True), base, 40
        self.vocab_size, self.period = self.layout.end, self.layout.period
    def to_codes(self, ids): return self.layout.revert((ids - self.base)[None, None])

def model(seed=0, books=3, K=K, loud=20., **kw):
    torch.manual_seed(seed)
    lm = MultimodalLLM(**dict(vocab_size=V, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48, n_layers=2, audio_vocab_size=books*K, codebook_size=K, context=400) | kw).eval()
    lm.emb.weight.data.mul_(loud) # decided, so that greedy has no near ties
    for p in lm.parameters():
        if p.ndim == 1: torch.nn.init.uniform_(p, .5, 1.5)
    return lm

def again(lm, rows, masks, prompt, n):
    "The plain loop: everything anew for each id"
    ids = list(prompt)
    for i in range(n):
        z = torch.nn.functional.linear(lm.hidden(torch.tensor([ids]))[0, -1], lm.emb.weight[rows])
        ids.append(int(rows[z.masked_fill(~masks[i % len(masks)], -torch.inf).argmax()]))
        if ids[-1] == int(rows[-1]): break
    return ids[len(prompt):]

@pytest.mark.parametrize('extra,count', [(0, 7_029_824), (12_288, 8_602_688), (28_672, 10_699_840)])
def test_parameters(extra, count):
    assert sum(p.numel() for p in MultimodalLLM(audio_vocab_size=extra).parameters()) == count

# the same weights in transformers
@pytest.mark.parametrize('kw', [dict(), dict(n_kv_heads=1, head_dim=24), dict(d_model=1024, n_heads=16, n_kv_heads=8, head_dim=128, d_ff=3072, n_layers=1, context=64)], ids=['tiny', 'head_dim', 'qwen3-0.6b-width'])
def test_parity_with_transformers(kw):
    from transformers import Qwen3ForCausalLM
    lm = model(loud=1., **kw)
    theirs = Qwen3ForCausalLM(qwen3_config(lm)).eval()
    theirs.load_state_dict(to_qwen3(lm))
    ids, mask = torch.randint(V + 3*K, (2, 24)), torch.ones(2, 24, dtype=torch.bool)
    mask[0, :9] = mask[1, 20:] = False
    with torch.no_grad():
        assert (theirs(ids).logits - lm(ids)).abs().max() < 1e-4
        assert (theirs(ids, attention_mask=mask.long()).logits - lm(ids, mask))[mask].abs().max() < 1e-4
    back = MultimodalLLM(**lm.config)
    back.load_state_dict(from_qwen3(theirs.state_dict(), lm.config['n_layers']))
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), lm.parameters()))

# a checkpoint grows
def checkpoint(folder, **kw):
    from transformers import Qwen3Config, Qwen3ForCausalLM
    torch.manual_seed(0)
    c = Qwen3Config(**dict(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True) | kw)
    m = Qwen3ForCausalLM(c).eval()
    m.save_pretrained(folder)
    return m

def test_from_pretrained(tmp_path):
    theirs = checkpoint(tmp_path/'q')
    lm = MultimodalLLM.from_pretrained(tmp_path/'q', audio_vocab_size=3*4096)
    ids = torch.randint(90, (2, 12))
    with torch.no_grad(): assert torch.allclose(lm(ids)[..., :90], theirs(ids).logits, atol=1e-4)
    assert lm.vocab_size == 97 and lm.emb.num_embeddings == 97 + 3*4096
    old = lm.emb.weight[:90]
    assert (lm.emb.weight[90:].mean(0) - old.mean(0)).abs().max() < .1*old.std(), 'new rows stand around the mean'

def test_from_pretrained_with_tokenizers(tmp_path):
    from soundlm.omni.tokenizer import beside
    text, codec = hub.load('bpe-tiny'), hub.load('mel_24khz')
    audio = beside(text, codec)
    theirs = checkpoint(tmp_path/'q', vocab_size=3000)
    lm = MultimodalLLM.from_pretrained(str(tmp_path/'q'), text, audio, rows='codes')
    assert (lm.vocab_size, lm.words, lm.markers) == (text.vocab_size, text.words, text.markers)
    assert torch.equal(lm.emb.weight[:text.vocab_size], theirs.model.embed_tokens.weight[:text.vocab_size]), 'rows that no id uses are dropped'
    assert torch.isclose(lm.emb.weight[text.vocab_size:].std(), theirs.model.embed_tokens.weight.std(), rtol=.1)
    folder = lm.save(tmp_path/'omni', '')
    assert hub.load(str(folder)).codec.sha == codec.sha
    assert len(lm.generate_audio(text.encode('yes'), audio, 2)) <= 14
    with pytest.raises(TokenError, match='beside'): MultimodalLLM.from_pretrained(tmp_path/'q', None, audio)

@pytest.mark.parametrize('kw,say', [(dict(tie_word_embeddings=False), 'untied'), (dict(attention_bias=True), 'plain qwen3'), (dict(model_type='llama'), "'llama'")], ids=['untied', 'biases', 'llama'])
def test_other_checkpoints_are_refused(tmp_path, kw, say):
    checkpoint(tmp_path, **{k: v for k, v in kw.items() if k != 'model_type'})
    if 'model_type' in kw: (tmp_path/'config.json').write_text((tmp_path/'config.json').read_text().replace('"qwen3"', '"llama"'))
    with pytest.raises(HubError, match=say): MultimodalLLM.from_pretrained(tmp_path)

def test_checkpoint_of_another_vocabulary(tmp_path):
    folder = model().save(tmp_path/'m', '')
    hub.save(folder, hub.to_fp16(model(books=4).state_dict()), hub.read_config(folder), '')
    with pytest.raises(HubError, match='do not fit'): hub.load(str(folder))
    with pytest.raises(TokenError, match='trained with'): model().speaking(Tokens(4))

# generation
@pytest.mark.parametrize('books', [3, 4])
def test_no_illegal_id_in_ten_thousand_frames(books):
    lm, tok, frames, ids = model(books=books, K=64, loud=5., context=200), Tokens(books, K=64), 0, 0
    lay, writer = tok.layout, lm.speaking(tok)
    while frames < 10_000:
        cond, mask = left_pad([[lm.markers['speak'], i % lm.words, lm.markers['audio']] for i in range(500)], lm.markers['pad'])
        seq = generate(writer, lay, 80//lay.period, cond, mask, Sampler(temperature=2., top_k=0), seeds=frames)
        legal = lay.masks[torch.arange(seq.shape[-1]) % lay.period].gather(1, seq[:, 0].T).T
        over = (seq[:, 0] == lay.end).cumsum(1) > 0
        assert int((~legal & ~over).sum()) == 0 and bool((seq[:, 0] == lay.end)[over].all())
        rows = [r for r in lay.trim(seq) if r.shape[-1]]
        for r in rows: lay.revert(r) # raises on an id in a wrong slot
        frames += sum(r.shape[-1] for r in rows)//lay.period

def test_cached_is_uncached_and_a_row_is_a_row():
    lm, tok = model(), Tokens()
    texts = [[3, 4, 5], [9], [1, 2, 3, 4, 5, 6, 7, 8]]
    together = lm.generate_audio(texts, tok, 5, greedy)
    writer = lm.speaking(tok)
    for t, got in zip(texts, together):
        want = again(lm, writer.rows, tok.layout.masks, [lm.markers['speak'], *t, lm.markers['audio']], 35)
        want = want[:-1] if want[-1] == lm.markers['/audio'] else want
        assert got.tolist() == want
        assert torch.equal(lm.generate_audio(t, tok, 5, greedy), got)
    sampled = lm.generate_audio(texts, tok, 5, Sampler(top_k=5), seeds=[5, 6, 7])
    for t, s, got in zip(texts, (5, 6, 7), sampled): assert torch.equal(lm.generate_audio(t, tok, 5, Sampler(top_k=5), seeds=s), got)

def test_text_cached_is_uncached():
    lm, tok = model(3), Tokens()
    sounds = [tok.layout.build([torch.randint(K, (1, n*2**i)) for i in range(3)])[0, 0] + V for n in (1, 3)]
    reader = lm.reading()
    for s, got in zip(sounds, lm.generate_text(sounds, 12)):
        want = again(lm, reader.rows, reader.layout.masks, [lm.markers['listen'], lm.markers['audio'], *s.tolist(), lm.markers['/audio']], 12)
        assert got == (want[:-1] if want[-1] == lm.markers['end'] else want)
        assert all(i < lm.words for i in got) and lm.generate_text(s, 12) == got

def test_a_prompt_is_kept():
    lm, tok = model(), Tokens()
    start = tok.layout.build([torch.randint(K, (1, 2*2**i)) for i in range(3)])[0, 0] + V
    got = lm.generate_audio([[5, 6], [7]], tok, 6, Sampler(top_k=4), prompt=start)
    assert all(torch.equal(g[:14], start) for g in got)

def test_guidance_weighs_the_text():
    "1 is the model alone, more changes what is said, 0 leaves the text without a say"
    lm, tok = model(loud=1., K=64), Tokens(K=64)
    say = lambda words, guidance: lm.generate_audio(words, tok, 6, Sampler(top_k=4, guidance=guidance), seeds=[3]*len(words)) # both rows draw alike
    plain, same, more, none = (say([[5, 6], [7, 8]], g) for g in (1., 1., 4., 0.))
    assert all(torch.equal(a, b) for a, b in zip(plain, same)) and all(not torch.equal(a, b) for a, b in zip(plain, more))
    assert not torch.equal(*plain) and torch.equal(*none) and torch.equal(none[0], say([[9, 4, 2], [1]], 0.)[0])

def test_a_stuck_id_is_drawn_again():
    "A model to which all ids are alike, and top-k 1: the same id for ever, unless what was said is looked at"
    lm, tok = model(K=64), Tokens(K=64)
    lm.emb.weight.data.zero_()
    kinds = lambda ids: [len(c.unique()) for c in ids.view(-1, 7).T]
    stuck, free = (lm.generate_audio([5, 6], tok, 10, Sampler(top_k=1, window=w), seeds=1) for w in (0, 4))
    assert kinds(stuck) == [1]*7 and len(free) >= 35 and min(kinds(free)) > 2

def test_guidance_compares_with_no_text():
    "The unconditional half is the prompt that training has without a text: what the text was, and how long, does not matter"
    lm, tok = model(), Tokens()
    m, writer = lm.markers, lm.speaking(tok)
    got = []
    for words in ([5, 6], [7, 8, 9, 4]):
        cond, mask = left_pad([[m['speak'], *words, m['audio']], [m['speak'], 3, m['audio']]], m['pad'])
        null, seen = writer.null_cond(cond, mask)
        assert null.shape == seen.shape == cond.shape and [r[s].tolist() for r, s in zip(null, seen)] == [[m['speak'], m['audio']]]*2
        got.append(writer.prefill(torch.zeros(2, 1, 0, dtype=torch.long), null, seen, writer.new_cache(2, 40)))
    bare = torch.tensor([[m['speak'], m['audio']]])
    want = writer.prefill(torch.zeros(1, 1, 0, dtype=torch.long), bare, None, writer.new_cache(1, 40))
    for g in got: assert torch.allclose(g, want.expand_as(g), atol=1e-5)

frame = [V + c*K for c in (0, 1, 2, 2, 1, 2, 2)]
@pytest.mark.parametrize('call,say', [
    (lambda lm, tok: lm.generate_audio([], tok), 'empty text'), (lambda lm, tok: lm.generate_audio([[5], []], tok), 'empty text'),
    (lambda lm, tok: lm.generate_audio([V + 1], tok), 'text id'), (lambda lm, tok: lm.generate_audio([5]*500, tok), 'context of 400'),
    (lambda lm, tok: lm.generate_text([]), 'no audio'),
    (lambda lm, tok: lm.generate_text([3]), 'audio id 3'), (lambda lm, tok: lm.generate_text(frame*57), 'split the audio'),
    (lambda lm, tok: lm.generate_text(frame[:-1]), 'multiple of 7'), (lambda lm, tok: lm.generate_text([torch.tensor(frame), torch.tensor(frame*2).roll(1)]), 'in slot 0'),
    (lambda lm, tok: lm.generate_text(frame + frame[::-1]), r'in slot 0 \(place 7\)'),
    (lambda lm, tok: lm.generate_audio([5], tok, 0), 'max_frames=0'), (lambda lm, tok: lm.generate_audio([5], tok, -3), 'max_frames=-3'),
    (lambda lm, tok: lm.hidden(torch.zeros(1, 401, dtype=torch.long)), 'context holds 400')])
def test_errors(call, say):
    with pytest.raises(SoundlmError, match=say): call(model(), Tokens())

def test_a_cut_is_said():
    lm, tok = model(), Tokens()
    lm.context, text = 80, list(range(1, 30))
    with pytest.warns(SoundlmWarning, match='cut at 7 of 30 frames'):
        for seed in range(20): got = lm.generate_audio(text, tok, 30, Sampler(temperature=5., top_k=0), seeds=seed)
    assert len(got) <= 49

def test_a_cut_is_said_only_where_there_was_one():
    "Also where the tokenizer's longest was asked for; not where the answer ended, nor where it was as long as was asked for"
    lm, tok, text = model(K=64), Tokens(K=64), list(range(1, 30))
    lm.emb.weight.data.zero_()
    lm.context, first = 80, Sampler(temperature=0)
    with pytest.warns(SoundlmWarning, match='cut at 7 of 40 frames'): assert len(lm.generate_audio(text, tok, sampler=first)) == 49
    ending = tok.layout.masks.clone()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(lm.generate_audio(text, tok, 7, first)) == 49
        tok.layout.masks[0, :-1] = False # the end is all that may come
        assert len(lm.generate_audio(text, tok, sampler=first)) == 0
    tok.layout.masks.copy_(ending)

def test_another_codec_of_the_same_sizes_is_refused():
    lm, tok = model(), Tokens()
    lm.parts = dict(codec=SimpleNamespace(name='ours', sha='aaaa'))
    for name, sha, good in (('ours', 'aaaa', True), ('./where/it/lies', 'aaaa', True), ('theirs', 'bbbb', False), ('ours', 'bbbb', False)):
        tok.codec = SimpleNamespace(name=name, sha=sha)
        if good: assert lm.speaking(tok).layout is tok.layout
        else:
            with pytest.raises(TokenError, match=f"'{name}' .weights bbbb.*'ours' .weights aaaa"): lm.generate_audio([5], tok)

@pytest.mark.parametrize('kw,say', [(dict(vocab_size=7), 'rows for at least'), (dict(vocab_size=3), 'rows for at least'), (dict(markers=dict(pad=1)), 'rows for at least'),
    (dict(d_model=33), 'd_model=33 and n_heads=4'), (dict(d_model=36), 'heads of 9'), (dict(head_dim=5), 'heads of 5'), (dict(n_kv_heads=3), 'n_kv_heads=3'), (dict(audio_vocab_size=-1), 'audio_vocab_size=-1'),
    (dict(rope_theta=0), 'rope_theta=0'), *((({k: v}), f'{k}={v}') for k in ('vocab_size', 'd_model', 'n_heads', 'n_kv_heads', 'd_ff', 'n_layers', 'context', 'codebook_size') for v in (0, -4, 1.5))])
def test_numbers_that_make_no_model(kw, say):
    with pytest.raises(SoundlmError, match=say): model(**kw)
    assert model(d_model=33, head_dim=8)(torch.zeros(1, 2, dtype=torch.long)).shape[:2] == (1, 2)

def test_a_folder_with_bad_numbers(tmp_path):
    folder = model().save(tmp_path/'m', '')
    good = (folder/'config.json').read_text()
    for old, new in (('"n_layers": 2', '"n_layers": 0'), ('"n_layers": 2', '"n_layers": "2"'), ('"n_layers": 2', '"layers": 2')):
        assert old in good
        (folder/'config.json').write_text(good.replace(old, new))
        with pytest.raises(HubError, match='makes no MultimodalLLM'): MultimodalLLM.from_folder(folder)

def test_loss_counts_legal_ids_only():
    lm, lay = model(loud=1.), Tokens().layout
    rows = lay.build([torch.randint(K, (2, 3*2**i)) for i in range(3)])[:, 0] + V
    m = lm.markers
    ids = torch.cat([torch.tensor([[m['speak'], 4, m['audio']]]*2), rows, torch.tensor([[m['/audio']]]*2)], 1)
    slot = torch.tensor([[-1]*3 + [i % 7 for i in range(22)]]*2)
    weight = torch.rand(ids.shape)
    with torch.no_grad(): got, z = lm.loss(dict(ids=ids, slot=slot, weight=weight)), lm(ids[:, :-1])
    legal = torch.zeros(8, z.shape[-1], dtype=torch.bool)
    legal[:7, V:], legal[0, m['/audio']], legal[7, :V] = lay.masks[:, :lay.end], True, True
    nats = torch.nn.functional.cross_entropy(z.masked_fill(~legal[slot[:, 1:]], -torch.inf).transpose(1, 2), ids[:, 1:], reduction='none')
    assert torch.allclose(got['loss'], (nats*weight[:, 1:]).sum()/weight[:, 1:].sum(), atol=1e-5)
    assert torch.allclose(got['audio_loss'], nats[slot[:, 1:] >= 0].mean(), atol=1e-5) and torch.allclose(got['text_loss'], nats[slot[:, 1:] < 0].mean(), atol=1e-5)
