"Streams: windows join without a seam, sizes are as asked for, the ids are those of one-shot generation, and whoever leaves stops the work"
import gc, threading, warnings

import pytest, torch
from hypothesis import given, settings, strategies as st
from soundlm import hub
from soundlm.codec import EnCodec, Snac
from soundlm.core import SoundlmError, SoundlmWarning, TokenError
from soundlm.metrics import mel_distance
from soundlm.omni.corpus import speak_as
from soundlm.omni.model import MultimodalLLM
from soundlm.omni.stream import StreamDecoder, new_codes, part, placed_noise, placed_randn, positions, seams, stream, time_to_first
from soundlm.omni.tokenizer import beside
from soundlm.sample import Sampler

kinds = {24: dict(sampling_rate=24000, encoder_rates=[2, 4, 8, 8], decoder_rates=[8, 8, 4, 2], vq_strides=[4, 2, 1], attn_window_size=None),
         44: dict(sampling_rate=44100, encoder_rates=[2, 3, 8, 8], decoder_rates=[8, 8, 3, 2], vq_strides=[8, 4, 2, 1], attn_window_size=32)}
_made = {}
def snac(kind, K=32):
    "A SNAC of published rates with few channels and random weights"
    from snac import SNAC
    if (kind, K) not in _made:
        torch.manual_seed(0)
        _made[kind, K] = Snac(SNAC(**kinds[kind], encoder_dim=4, decoder_dim=64, codebook_size=K))
    return _made[kind, K]
def draw(codec, t, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(codec.codebook_size, (1, t*2**i), generator=g) for i in range(codec.codebooks)]
def pieces(dec, codes, cuts):
    "Push frames up to each cut, then flush"
    ends = sorted({c for c in cuts if c < codes[0].shape[1]} | {codes[0].shape[1]})
    return [dec.push(part(codes, a, b)) for a, b in zip([0, *ends], ends)] + [dec.flush()]

@settings(max_examples=12, deadline=None)
@given(kind=st.sampled_from([24, 44]), t=st.integers(1, 14), cuts=st.lists(st.integers(1, 13), max_size=5), noise=st.sampled_from([0, 7, None]), seed=st.integers(0, 99))
def test_snac_in_windows_is_snac_at_once(kind, t, cuts, noise, seed):
    codec = snac(kind)
    codes = draw(codec, t, seed)
    with placed_noise(codec, 0, noise): whole = codec.decode(codes)[0]
    assert whole.shape[1] == t*codec.hop*max(codec.strides)
    dec = StreamDecoder(codec, noise=noise)
    for _ in range(2): # after a flush it is as new
        made = torch.cat(pieces(dec, codes, cuts), 1)
        assert made.shape == whole.shape and (made - whole).abs().max() < 1e-5

def test_noise_has_its_place_and_the_codec_keeps_its_own():
    codec = snac(24)
    codes = draw(codec, 3)
    before = codec.decode(codes)
    with placed_noise(codec, 0, 1): a = codec.decode(codes)
    with placed_noise(codec, 0, 2): b = codec.decode(codes)
    with placed_noise(codec, 0, None): c = codec.decode(codes)
    assert not torch.equal(a, b) and not torch.equal(a, c)
    with pytest.raises(ZeroDivisionError):
        with placed_noise(codec, 0): 1/0
    assert torch.equal(codec.decode(codes), before)
    assert torch.equal(placed_randn(0, 4, 3, 8), placed_randn(0, 2, 5, 8)[..., 16:]) and not torch.equal(placed_randn(0, 4, 3, 8), placed_randn(1, 4, 3, 8))

def test_too_little_context_is_heard():
    "The needed context is no guess: one frame less differs"
    codec = snac(24)
    codes = draw(codec, 12)
    with placed_noise(codec, 0): whole = codec.decode(codes)[0]
    worst = lambda c: float((torch.cat(pieces(StreamDecoder(codec, c, c), codes, range(1, 12)), 1) - whole).abs().max())
    assert worst(3) < 1e-5 < worst(2) < worst(1) < worst(0)

@pytest.fixture(scope='module')
def mel(): return hub.load('mel_24khz')

@settings(max_examples=8, deadline=None)
@given(t=st.integers(1, 9), cuts=st.lists(st.integers(1, 8), max_size=4), ahead=st.integers(0, 3))
def test_mel_gives_each_frame_once(mel, t, cuts, ahead):
    dec = StreamDecoder(mel, ahead=ahead)
    out = pieces(dec, draw(mel, t), cuts)
    assert sum(o.shape[1] for o in out) == t*2048 and all(o.shape[1] % 2048 == 0 and o.isfinite().all() for o in out)

def test_mel_joins_are_no_seams(mel):
    "As near to the original as decoding at once, and no join among the sharpest bends near it; without the known samples it would be"
    worse, rank, glued_rank = [], [], []
    for name in ('ben', 'emma'):
        wav = speak_as('how are you today', name)
        codes = mel.encode(wav[None])
        t = codes[0].shape[1]
        out = [o for o in pieces(StreamDecoder(mel), codes, range(3, t, 5)) if o.shape[1]]
        at = torch.tensor([o.shape[1] for o in out]).cumsum(0)[:-1].tolist()
        live, once = torch.cat(out, 1), mel.decode(codes)[0]
        glued = torch.cat([mel.decode(part(codes, a//2048, b//2048))[0] for a, b in zip([0, *at], [*at, t*2048])], 1)
        worse.append(mel_distance(wav, live[:, :wav.shape[1]], 24000)/mel_distance(wav, once[:, :wav.shape[1]], 24000))
        rank += seams(live, at)
        glued_rank += seams(glued, at)
    mean = lambda x: sum(x)/len(x)
    assert mean(worse) < 1.03 and mean(rank) > .25 and min(rank) > .01 > min(glued_rank) and mean(glued_rank) < mean(rank)

def test_known_samples_stay_and_default_decoding_does_not_change(mel):
    codes = draw(mel, 4)
    once = mel.decode(codes)
    assert torch.equal(mel.decode(codes, None), once)
    on = mel.decode(codes, once[..., :3000])
    assert torch.equal(on[..., :3000], once[..., :3000]) and on.shape == once.shape and on.isfinite().all()

def test_bad_input(mel):
    with pytest.raises(SoundlmError, match='EnCodec'): StreamDecoder(EnCodec.__new__(EnCodec))
    for kw in (dict(ahead=-1), dict(behind=-1), dict(fade=-1)):
        with pytest.raises(SoundlmError, match='0 or more'): StreamDecoder(mel, **kw)
    dec = StreamDecoder(mel)
    for bad in (draw(mel, 2)[:2], [c + 4096 for c in draw(mel, 2)], None):
        with pytest.raises(TokenError): dec.push(bad)
    with pytest.raises(SoundlmError, match='batch of 2'): dec.push([c.expand(2, -1) for c in draw(mel, 2)])
    assert dec.flush().shape == (1, 0) and dec.push(draw(mel, 3)).shape == (1, 2*2048)

@pytest.fixture(scope='module')
def omni(mel):
    "A model with random weights, its ids, and tokenizers for both codecs"
    text = hub.load('bpe-tiny')
    toks = beside(text, mel), beside(text, snac(24, 4096))
    torch.manual_seed(0)
    lm = MultimodalLLM(text.vocab_size, 16, 2, 1, 32, 1, audio_vocab_size=toks[0].vocab_size, context=300, markers=text.markers, words=text.words).eval()
    return lm, text.encode('hello'), *toks

@settings(max_examples=10, deadline=None)
@given(first=st.integers(1, 5), chunk=st.integers(1, 7), frames=st.integers(1, 16), n=st.integers(0, 4), use=st.sampled_from(['mel', 'snac']), seed=st.integers(0, 9))
def test_chunk_sizes(omni, first, chunk, frames, n, use, seed):
    "The first, then equal ones, then the rest; all frames but the prompt's, those of one-shot generation"
    lm, ids, *toks = omni
    tok = toks[use == 'snac']
    prompt = tok.to_tokens(draw(tok.codec, n))[0] if n else None
    t = frames + n
    out = list(stream(lm, ids, tok, first, chunk, t, prompt=prompt, seed=seed))
    whole = lm.generate_audio(ids, tok, t, prompt=prompt, seeds=seed)
    made = len(whole)//7 - n
    sizes = [o.shape[1]/2048 for o in out]
    assert sum(sizes) == made
    if sizes[:-1]: assert sizes[0] == first and set(sizes[1:-1]) <= {chunk}
    if use == 'snac' and made:
        with placed_noise(tok.codec, 0): at_once = tok.decode_audio(whole)
        assert (torch.cat(out, 1) - at_once[:, n*2048:]).abs().max() < 1e-5

@pytest.mark.parametrize('sampler', [Sampler(temperature=0), Sampler(.8, 60), Sampler(1., 0, .9), Sampler(1., 60, window=5)])
def test_positions_are_those_of_generate(omni, sampler):
    lm, ids, tok, _ = omni
    m = lm.markers
    cond = torch.tensor([[m['speak'], *ids, m['audio']]])
    for i, seq in positions(lm.speaking(tok), 12, cond, sampler, seed=3): assert not torch.is_inference_mode_enabled()
    frames = tok.layout.trim(seq[..., :i])[0][0, 0]
    assert torch.equal(frames + tok.base, lm.generate_audio(ids, tok, 12, sampler, seeds=3))

def test_a_model_that_ends(omni):
    "The marker at once, or after some frames: no sound is made up"
    lm, ids, tok, _ = omni
    old = lm.emb.weight.detach().clone()
    class Ends:
        def __init__(self, after): self.after = after
        def __call__(self, seq): return seq
    for after in (0, 1, 3, 4):
        writer = lm.speaking(tok)
        step, prefill = type(writer).step, type(writer).prefill
        def forced(z, pos): # the id that ends, where a frame begins
            if pos == after*7: z[..., tok.layout.end] = 1e4
            return z
        writer_type = type(writer)
        writer_type.step = lambda self, x, pos, cache: forced(step(self, x, pos, cache), int(pos) + 1)
        writer_type.prefill = lambda self, x, *a: forced(prefill(self, x, *a), x.shape[2])
        try: out = list(stream(lm, ids, tok, 2, 2, 12))
        finally: writer_type.step, writer_type.prefill = step, prefill
        assert sum(o.shape[1] for o in out) == after*2048
    assert torch.equal(lm.emb.weight, old)

def test_closing_stops_within_a_frame(omni):
    lm, ids, tok, _ = omni
    done = []
    lm.train()
    chunks = stream(lm, ids, tok, 2, 6, 30, stop=lambda: done.append(1))
    assert not done and next(chunks).shape == (1, 2*2048) and len(done) == 3*7
    chunks.close()
    gc.collect()
    assert len(done) == 3*7 and lm.training
    lm.eval()
    with pytest.raises(StopIteration): next(chunks)

def test_stop_from_another_thread(omni):
    "A flag that is set while a chunk is being made ends the stream at the next position"
    lm, ids, tok, _ = omni
    flag, started, out, steps = threading.Event(), threading.Event(), [], []
    def stop():
        steps.append(flag.is_set())
        started.set()
        if len(steps) > 5: flag.wait(30)
        return flag.is_set()
    play = threading.Thread(target=lambda: out.extend(stream(lm, ids, tok, 2, 6, 30, stop=stop)))
    play.start()
    assert started.wait(30)
    flag.set()
    play.join(60)
    assert not play.is_alive() and out == [] and len(steps) <= 7

def test_new_codes(omni):
    tok = omni[2]
    codes = draw(tok.codec, 4)
    seq = tok.layout.build(codes)
    for n in range(len(seq[0, 0]) + 1):
        for have in range(n//7 + 1):
            new = new_codes(tok.layout, seq[..., :n], have)
            assert new is None if n//7 == have else all(torch.equal(a, b) for a, b in zip(new, part(codes, have, n//7)))

def test_bad_requests(omni):
    lm, ids, tok, _ = omni
    for kw in (dict(first=0), dict(chunk=0)):
        with pytest.raises(SoundlmError, match='at least 1 frame'): next(stream(lm, ids, tok, **kw))
    with pytest.raises(SoundlmError, match='empty text'): next(stream(lm, [], tok))
    with pytest.raises(SoundlmError, match='empty text'): next(stream(lm, [hub.load('bpe-tiny').id('<|voice:anna|>')], tok))
    for bad in (10**6, -1, tok.base, tok.base + 9):
        with pytest.raises(TokenError, match=f'text id {bad}'): next(stream(lm, [*ids, bad], tok))
    for n in (0, -2):
        with pytest.raises(SoundlmError, match=f'max_frames={n}'): next(stream(lm, ids, tok, max_frames=n))
    with pytest.raises(SoundlmError, match='split the text'): next(stream(lm, ids*300, tok))
    with pytest.raises(TokenError, match='expected'): next(stream(lm, ids, beside(hub.load('bpe-tiny'), tok.codec, offset='slot')))
    with pytest.raises(SoundlmError, match='prompt of 60'): next(stream(lm, ids, tok, prompt=tok.to_tokens(draw(tok.codec, 60))[0]))

def test_a_cut_is_said(omni):
    "Where the context ends before the sound does, and only there"
    lm, ids, tok, _ = omni
    fits = (lm.context - len(ids) - 2)//7
    play = lambda *a, **kw: sum(o.shape[1] for o in stream(lm, ids, tok, *a, sampler=Sampler(temperature=0), **kw))//2048
    ending, masks = tok.layout.end, tok.layout.masks.clone()
    try:
        tok.layout.masks[0, ending] = False # it never ends by itself
        prompt = tok.to_tokens(draw(tok.codec, 3))[0]
        for kw, frames, wanted in ((dict(), fits, tok.max_frames), (dict(max_frames=fits + 1), fits, fits + 1), (dict(prompt=prompt), fits - 3, tok.max_frames)):
            with pytest.warns(SoundlmWarning, match=f'cut at {fits} of {wanted} frames'): assert play(**kw) == frames
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert play(max_frames=fits) == fits
            assert play(max_frames=2) == 2 and play(stop=lambda: True) == 0
            tok.layout.masks[0] = torch.arange(len(masks[0])) == ending
            assert play() == 0
    finally: tok.layout.masks.copy_(masks)

def test_time_to_first(omni):
    lm, ids, tok, _ = omni
    closed = []
    def begin():
        try: yield torch.zeros(1, 9)
        finally: closed.append(1)
    waits = time_to_first(begin, 2)
    assert len(waits) == 2 and len(closed) == 2
    steps = []
    time_to_first(lambda: stream(lm, ids, tok, 2, 6, 20, stop=lambda: steps.append(1)), 2)
    assert len(steps) == 2*3*7 # two frames of sound and one held back, of twenty; then it was closed

def test_seams():
    t = torch.arange(6000)/24000
    wave = torch.sin(2000*t)[None]
    broken = wave.clone()
    broken[:, 3000:] *= -1
    assert seams(broken, [3000])[0] < .01 < .05 < seams(wave, [3000])[0] and seams(wave, []) == []
    assert 0 <= seams(wave, [5])[0] <= 1 and 0 <= seams(wave, [5990])[0] <= 1
