"The shared vocabulary: exact inverses for any frame count, base and markers; legal ids; Orpheus's arithmetic; bad input"
import warnings
from types import SimpleNamespace

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from soundlm import audio, hub
from soundlm.core import AudioError, HubError, SoundlmError, SoundlmWarning, TokenError
from soundlm.omni.tokenizer import SNACTokenizer, TextTokenizer, beside, specials, train_bpe

some = settings(max_examples=60, deadline=None)
scales, offsets = st.sampled_from([3, 4]), st.sampled_from(['codebook', 'slot'])

def part(k, K=4096): # what a tokenizer reads of a codec
    return SimpleNamespace(name='part', strides=tuple(2**i for i in reversed(range(k))), codebooks=k, codebook_size=K, sample_rate=24000, frame_rate=24000/2048)
def make(k, offset, base=4, K=4096, **kw): return SNACTokenizer(part(k, K), offset, base, **kw)
def draw(k, b, t, K, seed):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(K, (b, t*2**i), generator=g) for i in range(k)]
def same(a, b): return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

@st.composite
def places(draw_, size): # a base, and four markers before it or behind the audio
    base = draw_(st.integers(0, 200_000))
    free = st.one_of(*([st.integers(0, base - 1)] if base else []), st.integers(base + size, base + size + 5000))
    return base, draw_(st.lists(free, min_size=4, max_size=4, unique=True))

@some
@given(k=scales, offset=offsets, b=st.integers(1, 3), t=st.integers(1, 40), K=st.sampled_from([5, 64, 4096]), seed=st.integers(0, 2**31), data=st.data())
def test_there_and_back(k, offset, b, t, K, seed, data):
    period = 2**k - 1
    base, (pad, start, end, unknown) = data.draw(places(K*(k if offset == 'codebook' else period)))
    tok = make(k, offset, base, K, pad=pad, start=start, end=end, unknown=unknown)
    codes = draw(k, b, t, K, seed)
    ids = tok.to_tokens(codes)
    assert ids.shape == (b, period*t) and ids.dtype == torch.int64 and base <= int(ids.min()) and int(ids.max()) < base + tok.vocab_size
    assert same(tok.to_codes(ids), codes)
    row = [start, *ids[0].tolist(), end, pad, pad]
    assert same(tok.to_codes(row), [c[:1] for c in codes]) and same(tok.to_codes(torch.tensor(row)), [c[:1] for c in codes])
    slots = tok.slots(torch.tensor(row))
    assert slots.tolist() == [-1] + list(range(period))*t + [0, -1, -1]
    legal = torch.stack([tok.legal(s) for s in range(period)])
    assert legal[slots[1:-3], ids[0]].all() and legal[0, end] and not legal[:, [pad, start, unknown]].any() and not legal[1:, end].any()
    assert legal.sum(1).tolist() == [K + 1] + [K]*(period - 1) and legal.shape[1] >= base + tok.vocab_size

@some
@given(k=scales, offset=offsets, t=st.integers(1, 6), at=st.integers(0, 10**6), shift=st.integers(1, 10**6), seed=st.integers(0, 2**31))
def test_what_is_broken_is_refused(k, offset, t, at, shift, seed):
    "A missing id, an id of another slot, an id of nothing"
    tok = make(k, offset)
    ids = tok.to_tokens(draw(k, 1, t, 4096, seed))[0]
    at %= len(ids)
    with pytest.raises(TokenError): tok.to_codes(torch.cat([ids[:at], ids[at + 1:]]))
    wrong = ids.clone()
    wrong[at] = tok.base + (int(ids[at]) - tok.base + 4096*(1 + shift)) % tok.vocab_size
    if not tok.legal(at % tok.period)[wrong[at]]:
        with pytest.raises(TokenError, match='slot'): tok.to_codes(wrong)
    for bad in (tok.unknown, tok.base + tok.vocab_size, -1):
        with pytest.raises(TokenError): tok.to_codes([*ids.tolist(), bad])

@pytest.mark.parametrize('k', [3, 4])
@pytest.mark.parametrize('offset', ['codebook', 'slot'])
def test_ten_thousand_sampled_frames_are_valid(k, offset):
    "Drawn through `legal` with equal probability, markers included: each stretch up to an `end` reverts"
    tok = make(k, offset)
    g = torch.Generator().manual_seed(0)
    rows = torch.stack([torch.multinomial(tok.legal(s).float(), 10_000, True, generator=g) for s in range(tok.period)], 1)
    over = rows[:, 0] == tok.end
    assert not (rows[:, 1:] == tok.end).any()
    codes = tok.to_codes(rows[~over].flatten())
    assert all(0 <= int(c.min()) and int(c.max()) == 4095 for c in codes) and codes[0].shape[1] == int((~over).sum()) > 9900
    assert same(tok.to_codes(rows[~over].flatten()[None]), codes)

@some
@given(t=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_orpheus(t, seed):
    "The public decoder: `<custom_token_N>` is row 128256+N, code = N - 10 - (i%7)*4096, and the order of its codebooks"
    tok = make(3, 'slot', 128_266, pad=128_263, start=128_257, end=128_258, unknown=128_265)
    codes = draw(3, 1, t, 4096, seed)
    numbers = [row - 128_256 for row in tok.to_tokens(codes)[0].tolist()]
    back = [n - 10 - (i % 7)*4096 for i, n in enumerate(numbers)]
    theirs = [[], [], []]
    for j in range(0, len(back), 7):
        theirs[0] += [back[j]]
        theirs[1] += [back[j+1], back[j+4]]
        theirs[2] += [back[j+2], back[j+3], back[j+5], back[j+6]]
    assert theirs == [c[0].tolist() for c in codes]
    assert tok.vocab_size == 28_672 and make(3, 'codebook').vocab_size == 12_288

def test_a_zero_is_a_code():
    tok = make(3, 'slot', 128_266, pad=0, start=1, end=2, unknown=3)
    zeros = [torch.zeros(1, 4*2**i, dtype=torch.long) for i in range(3)]
    assert same(tok.to_codes(tok.to_tokens(zeros)[0]), zeros)
    with pytest.raises(TokenError): tok.to_tokens([c + 4096 for c in zeros])

def test_nonsense_settings():
    for kw in (dict(base=0), dict(base=2), dict(pad=1), dict(end=-1), dict(unknown=4)):
        with pytest.raises(SoundlmError, match='markers'): SNACTokenizer(part(3), **kw)
    with pytest.raises(SoundlmError, match='offset'): make(3, 'row')
    with pytest.raises(SoundlmError, match='strides'): SNACTokenizer(SimpleNamespace(name='x', strides=(1, 1, 1, 1)))
    with pytest.raises(HubError, match='mel_24khz'): SNACTokenizer('mel_24kz')
    four = [c for c in draw(4, 1, 2, 4096, 0)]
    with pytest.raises(TokenError): make(3, 'slot').to_tokens(four)

@pytest.fixture(scope='module')
def codec(): return hub.load('mel_24khz')

def noise(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(0))*.1

def test_audio_of_all_kinds(codec, tmp_path):
    tok = SNACTokenizer(codec, max_audio_duration=1.)
    ids = tok.encode_audio(noise(12000))
    assert len(ids) == 42 and tok.decode_audio(ids).shape == (1, 6*2048)
    for same_ in (noise(1, 12000), noise(12000).numpy(), noise(12000).numpy().astype('float64'), noise(12000).tolist()): assert torch.equal(tok.encode_audio(same_), ids)
    with pytest.warns(SoundlmWarning, match='2-channel'): assert torch.equal(tok.encode_audio(noise(1, 12000).expand(2, -1)), ids)
    with pytest.warns(SoundlmWarning, match='cut to 1 s'): assert len(tok.encode_audio(noise(50000))) == 7*12
    assert len(tok.encode_audio(noise(6000), 12000)) == 42
    path = audio.save(tmp_path/'stereo.flac', noise(1, 44100).expand(3, -1), 44100)
    with pytest.warns(SoundlmWarning) as said: tok.encode_audio(path)
    assert any('3-channel' in str(o.message) for o in said) and any('resampled' in str(o.message) for o in said)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        tok.encode_audio(audio.save(tmp_path/'fine.wav', noise(1, 12000), 24000))

@pytest.mark.parametrize('bad', [torch.zeros(0), np.zeros((1, 0), 'float32'), torch.full((9,), torch.nan), torch.full((9,), torch.inf), torch.zeros(1, 1, 9),
                                 np.zeros(9, 'int16'), torch.tensor(.5), 'no such file.wav'])
def test_no_audio(codec, bad):
    with pytest.raises(AudioError): SNACTokenizer(codec).encode_audio(bad)

def test_a_broken_file(codec, tmp_path):
    path = tmp_path/'a.wav'
    path.write_bytes(b'RIFF but no more')
    with pytest.raises(AudioError): SNACTokenizer(codec).encode_audio(path)
    with pytest.raises(AudioError): SNACTokenizer(codec).encode_audio(str(tmp_path))

@pytest.fixture(scope='module')
def tiny(): return train_bpe(['hello world', 'the weather is beautiful', 'beautiful world'], 300, ('<|voice:anna|>',))

@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(tiny, text):
    ids = tiny.encode(text)
    assert all(0 <= i < tiny.words for i in ids) and tiny.decode(ids) == text.strip()

def test_no_text_holds_a_marker(tiny):
    for o in tiny.specials:
        ids = tiny.encode(f'a {o} b')
        assert max(ids) < tiny.words and tiny.decode(ids) == f'a {o} b'
    assert tiny.decode([tiny.id('<|speak|>'), *tiny.encode('hello'), tiny.id('<|end|>')]) == 'hello'

def test_specials(tiny, tmp_path):
    assert list(tiny.specials)[:len(specials)] == list(specials) and sorted(tiny.specials.values()) == list(range(tiny.words, tiny.vocab_size))
    back = TextTokenizer.from_folder(tiny.save(tmp_path, 'card'), ('<|voice:ben|>',))
    assert back.encode('hello beautiful') == tiny.encode('hello beautiful') and back.words == tiny.words
    assert back.id('<|voice:ben|>') == tiny.vocab_size and {k: back.id(k) for k in tiny.specials} == tiny.specials
    with pytest.raises(TokenError, match='voice:anna'): tiny.id('<|voice:bob|>')
    assert hub.load(tmp_path).vocab_size == tiny.vocab_size

def test_broken_text_tokenizers(tmp_path):
    with pytest.raises(HubError): TextTokenizer.from_folder(tmp_path)
    for junk in ('', '{}', '[1]', 'x'*99):
        (tmp_path/'tokenizer.json').write_text(junk)
        with pytest.raises(HubError): TextTokenizer.from_folder(tmp_path)
    with pytest.raises(SoundlmError, match='at least'): train_bpe(['a'], 10)

def test_beside(codec):
    text = hub.load('bpe-tiny')
    tok = beside(text, codec, max_audio_duration=2.)
    assert tok.base == text.vocab_size and tok.markers == tuple(text.markers[o] for o in ('pad', 'audio', '/audio', 'unk')) and tok.max_frames == 23
    ids = tok.encode_audio(noise(9000), markers=True)
    assert int(ids[0]) == text.id('<|audio|>') and int(ids[-1]) == text.id('<|/audio|>') and int(ids[1:-1].min()) >= text.vocab_size
    assert all(f'<|voice:{n}|>' in text.specials for n in ('george', 'anna', 'felix'))
