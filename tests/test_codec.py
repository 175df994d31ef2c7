"""What the notebooks 03 and 09 cannot hold: real widths, properties over shapes, faults in files, resumed training."""
import json, math, os, signal
import pytest, torch
from hypothesis import given, settings, strategies as st
from soundlm import hub
from soundlm.codec import Codec, EnCodec, MelCodec, Refiner, Snac, check_codes, check_encodec, istft, stft
from soundlm.codec_train import CodecPhase, CodecTrainer, Crops, Critic, codec_results, fit_codebooks, fit_refiner, frame_pairs, held_out, latent, levels, quantize, save_snac, snac_config, spectral_loss, to_snac_bin
from soundlm.core import AudioError, HubError, Interrupted, SoundlmError, TokenError

def noise(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))*.1

@pytest.fixture(scope='module', params=['mel_32khz', 'mel_24khz'])
def zoo_codec(request): return hub.load(request.param)

def encodec(**kw):
    from transformers import EncodecConfig, EncodecModel
    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(**(dict(sampling_rate=32000, upsampling_ratios=[8, 5, 4, 4], target_bandwidths=[2.2], codebook_size=2048,
        use_causal_conv=False, use_conv_shortcut=False, num_filters=4, hidden_size=16, num_lstm_layers=1) | kw)))
    for o in model.quantizer.layers: o.codebook.embed.normal_()
    return model

def snac(**kw):
    from snac import SNAC
    torch.manual_seed(0)
    return SNAC(**(dict(sampling_rate=24000, encoder_dim=8, encoder_rates=[2, 4, 8, 8], decoder_dim=64, decoder_rates=[8, 8, 4, 2],
        attn_window_size=None, codebook_size=256, vq_strides=[4, 2, 1]) | kw))

def test_real_encodec_shapes():
    "The configuration of facebook/encodec_32khz at its own width, with random weights"
    enc = EnCodec(encodec(num_filters=64, hidden_size=128, num_lstm_layers=2))
    check_encodec(enc.model.config)
    codes = enc.encode(noise(1, 1, 16001))
    assert codes.shape == (1, 4, 26) and enc.decode(codes).shape == (1, 1, 26*640)
    assert (enc.sample_rate, enc.frame_rate, enc.codebooks, enc.codebook_size) == (32000, 50, 4, 2048)
    assert sum(p.numel() for p in enc.parameters()) > 5e7

def test_real_snac_shapes():
    "The configuration of hubertsiuzdak/snac_24khz at its own width, with random weights"
    sn = Snac(snac(encoder_dim=48, decoder_dim=1024, codebook_size=4096))
    codes = sn.encode(noise(1, 1, 12000))
    assert [c.shape for c in codes] == [(1, 6), (1, 12), (1, 24)] and sn.decode(codes).shape == (1, 1, 12288)
    assert abs(sn.frame_rate - 11.72) < .01 and sn.strides == (4, 2, 1)

def test_known_samples_that_do_not_fit():
    "As long as the sound is the most that can be known of it"
    codec = MelCodec(16000, 320, 512, 32, (1,), 8).fit([noise(1, 16000)])
    codes = codec.encode(noise(1, 1, 16000))[..., :6]
    y = codec.decode(codes)
    assert torch.equal(codec.decode(codes, y), y) and codec.decode(codes, y[..., :9]).shape == y.shape
    for bad in (torch.zeros(1, 1, y.shape[-1] + 1), torch.zeros(1, y.shape[-1]), torch.zeros(1, 2, 8), torch.zeros(8)):
        with pytest.raises(AudioError, match='known samples of shape'): codec.decode(codes, bad)

@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 9000), b=st.integers(1, 3))
def test_any_length(n, b):
    for codec in (hub_codec('mel_32khz'), hub_codec('mel_24khz')):
        codes = codec.encode(noise(b, 1, n))
        books = check_codes(codes, codec)
        t = math.ceil(n/codec.hop/max(codec.strides))
        assert [tuple(c.shape) for c in books] == [(b, t*max(codec.strides)//s) for s in codec.strides]
        assert codec.decode(codes).shape == (b, 1, t*codec.hop*max(codec.strides))

_loaded = {}
def hub_codec(name): return _loaded.setdefault(name, hub.load(name))

@settings(max_examples=20, deadline=None)
@given(t=st.integers(1, 12), hop=st.sampled_from([64, 80, 128]))
def test_stft_is_inverted_exactly(t, hop):
    w, x = torch.hann_window(256), noise(2, t*hop)
    assert stft(x, w, hop).shape == (2, t, 129)
    assert (istft(stft(x, w, hop), w, hop) - x).abs().max() < 1e-4

def test_batch_equals_single(zoo_codec):
    x = noise(3, 1, 9000)
    codes = check_codes(zoo_codec.encode(x), zoo_codec)
    one = check_codes(zoo_codec.encode(x[1:2]), zoo_codec)
    assert all((a[1:2] == b).all() for a, b in zip(codes, one))
    pack = (lambda c: torch.stack(c, 1)) if len(set(zoo_codec.strides)) == 1 else list
    assert (zoo_codec.decode(pack(codes))[1:2] - zoo_codec.decode(pack(one))).abs().max() < 1e-3

def test_decoding_is_deterministic_and_leaves_the_random_state(zoo_codec):
    codes = zoo_codec.encode(noise(1, 1, 9000))
    torch.manual_seed(3)
    a = zoo_codec.decode(codes)
    r = torch.rand(1)
    torch.manual_seed(3)
    assert torch.rand(1) == r and (zoo_codec.decode(codes) == a).all()

def test_random_codes_decode_to_finite_sound(zoo_codec):
    codes = [torch.randint(zoo_codec.codebook_size, (1, 8*max(zoo_codec.strides)//s)) for s in zoo_codec.strides]
    y = zoo_codec.decode(torch.stack(codes, 1) if len(set(zoo_codec.strides)) == 1 else codes)
    assert y.isfinite().all()

def test_silence_stays_silent(zoo_codec):
    y = zoo_codec.decode(zoo_codec.encode(torch.zeros(1, 1, 24000)))
    assert y.abs().max() < .05

@pytest.mark.parametrize('make', [lambda: hub.load('mel_32khz'), lambda: EnCodec(encodec()), lambda: Snac(snac())])
def test_bad_input(make):
    codec = make()
    for bad in (torch.zeros(1, 1, 0), torch.full((1, 1, 9), float('nan')), torch.full((1, 1, 9), float('inf')), torch.zeros(9), torch.zeros(1, 2, 9), None):
        with pytest.raises(AudioError): codec.encode(bad)
    good = check_codes(codec.encode(noise(1, 1, 9000)), codec)
    for bad in (good[:-1], [c - 5000 for c in good], [c + 5000 for c in good], [c[:, :0] for c in good], None, torch.zeros(4)):
        with pytest.raises(TokenError): codec.decode(bad)

def test_broken_folders(tmp_path):
    (tmp_path/'config.json').write_text('{"model_type":"mel-codec"}')
    with pytest.raises(HubError, match='lacks'): hub.load(tmp_path)
    codec = MelCodec(16000, 320, 512, 32, (1,), 8)
    codec.save(tmp_path, 'card')
    data = (tmp_path/'model.safetensors').read_bytes()
    (tmp_path/'model.safetensors').write_bytes(data[:-100])
    with pytest.raises(HubError, match='truncated'): hub.load(tmp_path)
    (tmp_path/'config.json').write_text(json.dumps(codec.config | dict(n_mels=16)))
    (tmp_path/'model.safetensors').write_bytes(data)
    with pytest.raises(HubError, match='do not fit'): hub.load(tmp_path)

@pytest.mark.parametrize('kw', [dict(strides='x'), dict(strides='12'), dict(strides=[]), dict(strides=None), dict(strides=[3, 2]), dict(strides=[0]), dict(hop=0),
                                dict(hop=1.5), dict(hop=1024), dict(n_fft=-1), dict(n_mels='many'), dict(codebook_size=True), dict(codebook_size=10**15)])
def test_nonsense_in_a_config(tmp_path, kw):
    codec = MelCodec(16000, 320, 512, 32, (1,), 8)
    codec.save(tmp_path, 'card')
    (tmp_path/'config.json').write_text(json.dumps(codec.config | kw))
    with pytest.raises(HubError, match='makes no MelCodec'): hub.load(tmp_path)

def test_nonsense_in_a_refiner(tmp_path):
    codec = MelCodec(16000, 320, 512, 32, (1,), 8)
    codec.refiner = Refiner(32, 8, 8, 1)
    codec.save(tmp_path, 'card')
    assert hub.load(tmp_path).refiner is not None
    for kw in (dict(blocks='x'), dict(dim=-1), dict(colour='red')):
        (tmp_path/'refiner'/'config.json').write_text(json.dumps(codec.refiner.config | kw))
        with pytest.raises(HubError, match='makes no Refiner'): hub.load(tmp_path)

class Elsewhere(torch.Tensor):
    "A tensor on a pretended device: mixed with a plain one it raises, as CUDA does; `.cpu()` brings it back"
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        flat = [a for a in args if isinstance(a, torch.Tensor)]
        if func is torch.Tensor.cpu: return args[0].as_subclass(torch.Tensor)
        if any(type(a) is torch.Tensor and a.ndim for a in flat): raise RuntimeError('Expected all tensors to be on the same device')
        return super().__torch_function__(func, types, args, kwargs or {})

def test_measuring_a_codec_on_another_device():
    real = hub_codec('mel_32khz')
    class Far:
        def __getattr__(self, k): return getattr(real, k)
        def encode(self, x): return real.encode(x).as_subclass(Elsewhere)
        def decode(self, codes): return real.decode(codes.cpu()).as_subclass(Elsewhere)
    clips = [noise(1, 9000, seed=i) for i in range(2)]
    with pytest.raises(RuntimeError, match='same device'): spectral_loss(Far().decode(Far().encode(clips[0][None])), clips[0][None])
    assert [r['value'] for r in codec_results(Far(), clips)] == [r['value'] for r in codec_results(real, clips)]

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_codecs_on_cuda(tmp_path):
    "Input from the CPU follows the codec; training, measuring and saving do too"
    from soundlm.codec_train import fit_mel, save_encodec
    clips = [noise(1, 16000, seed=i) for i in range(3)]
    fit_mel(MelCodec(32000, 640, 2048, 40, (1, 1), 16).cuda(), clips, clips[:1], tmp_path/'mel', 'noise', steps=3)
    codec = hub.load(str(tmp_path/'mel')).cuda()
    assert codec.decode(codec.encode(clips[0][None]).cpu()).device.type == 'cuda'
    for bf16 in (False, True):
        t = CodecTrainer(encodec(), Crops(clips, 3200, 2), tmp_path/f'run{bf16}', 32000, 'cuda', bf16, Critic((512, 256), 4))
        t.run(CodecPhase('autoencoder', 2, warmup=1))
        t.codebooks([noise(1, 1, 640*200, seed=i) for i in range(11)], iters=1)
        for name in ('quantized', 'adversarial'): t.run(CodecPhase(name, 2, warmup=1))
        assert (save_encodec(t, clips[:1], tmp_path/f'twin{bf16}', 'noise')/'README.md').exists()

@pytest.mark.parametrize('make, rate', [(lambda: encodec(), 32000), (lambda: snac(), 24000)])
def test_bf16_leaves_the_codebooks_in_fp32(tmp_path, make, rate):
    t = CodecTrainer(make(), Crops([noise(1, 9000)], 4096, 2), tmp_path, rate, bf16=True)
    got = t.run(CodecPhase('quantized', 2, warmup=1))
    assert math.isfinite(got['loss']) and all(keys.dtype == torch.float32 for keys, _ in t.seen)

def test_refiner_learns_from_pairs_in_main_memory():
    codec = MelCodec(16000, 320, 512, 32, (1,), 8).fit([noise(1, 16000)])
    pairs = frame_pairs(codec, [noise(1, 16000)])
    assert all(v.device.type == 'cpu' for v in pairs[0]) and len(fit_refiner(Refiner(32, 8, 8, 1), pairs, 3, batch=2)) == 3

def test_another_encodec_is_refused(tmp_path):
    for kw in (dict(sampling_rate=24000), dict(codebook_size=1024, target_bandwidths=[2.0]), dict(upsampling_ratios=[8, 5, 4, 2])):
        encodec(**kw).save_pretrained(tmp_path)
        with pytest.raises(HubError, match='expected EnCodec with'): hub.load(tmp_path)
    encodec(use_conv_shortcut=True).save_pretrained(tmp_path) # as in an old revision on the hub
    with pytest.raises(HubError, match='fetch the current revision'): hub.load(tmp_path)
    (tmp_path/'config.json').write_text(json.dumps(json.loads((tmp_path/'config.json').read_text()) | dict(use_conv_shortcut=False)))
    with pytest.raises(HubError, match='do not fit'): hub.load(tmp_path)

def test_weight_norm_of_older_torch_loads(tmp_path):
    "Weights on the hub name weight norm `weight_g`, `weight_v`"
    model = snac()
    old = {k.replace('parametrizations.weight.original0', 'weight_g').replace('parametrizations.weight.original1', 'weight_v'): v
           for k, v in model.state_dict().items()}
    config = dict(sampling_rate=24000, encoder_dim=8, encoder_rates=[2, 4, 8, 8], decoder_dim=64, decoder_rates=[8, 8, 4, 2],
                  attn_window_size=None, codebook_size=256, vq_strides=[4, 2, 1])
    (tmp_path/'config.json').write_text(json.dumps(config))
    torch.save(old, tmp_path/'pytorch_model.bin')
    x = noise(1, 1, 4096)
    assert all((a == b).all() for a, b in zip(hub.load(tmp_path).encode(x), Snac(model).encode(x)))

def test_a_trained_snac_is_one_for_the_package_too(tmp_path):
    "Saved as safetensors, loaded by us; as a .bin on demand, loaded by `snac`: the same codes, and the same sound but for its noise"
    from snac import SNAC
    t = CodecTrainer(snac(encoder_dim=4, decoder_dim=32, noise=False), Crops([noise(1, 9000)], 2048, 2), tmp_path/'run', 24000)
    t.run(CodecPhase('quantized', 2, warmup=1))
    folder = save_snac(t, [noise(1, 9000, seed=1)], tmp_path/'twin', 'noise')
    assert sorted(p.name for p in folder.iterdir()) == ['README.md', 'config.json', 'model.safetensors', 'training.csv']
    ours, theirs = hub.load(folder), SNAC.from_pretrained(to_snac_bin(folder, tmp_path/'bin'))
    assert snac_config(theirs) == json.loads((folder/'config.json').read_text()) == snac_config(t.model)
    x = noise(1, 1, 9000, seed=2)
    codes = ours.encode(x)
    with torch.no_grad():
        assert all((a == b).all() for a, b in zip(codes, theirs.encode(x))) and (ours.decode(codes) == theirs.decode(codes)).all()
    t.model.load_state_dict(theirs.state_dict())
    with pytest.raises(HubError, match='no SNAC'): to_snac_bin('mel_24khz', tmp_path/'no')
    assert not (tmp_path/'no').exists()

def test_quantising_here_is_quantising_there():
    "Training sees the codes and the latents that inference will"
    x = noise(2, 1, 8192)
    for model, wrap in ((encodec(), EnCodec), (snac(), Snac)):
        codec = wrap(model)
        for o in levels(model):
            if o.cosine: o.book.copy_(torch.nn.functional.normalize(o.book))
        with torch.no_grad():
            q, _, seen = quantize(levels(model), latent(model, x))
            y = model.decoder(q) if wrap is EnCodec else None
        codes = codec.encode(x)
        assert all((a.flatten() == s[1]).all() for a, s in zip(check_codes(codes, codec), seen))
        if y is not None: assert (codec.decode(codes) - y).abs().max() < 1e-5

@pytest.mark.parametrize('make, samples', [(lambda: encodec(), 1280), (lambda: snac(encoder_dim=4, decoder_dim=32), 2048)])
def test_resumed_training_is_the_same_training(tmp_path, make, samples):
    "SNAC's noise included"
    phase = CodecPhase('quantized', 6, warmup=2)
    crops = Crops([noise(1, 9000, seed=i) for i in range(3)], samples, 2)
    def trainer(folder):
        t = CodecTrainer(make(), crops, folder, 32000)
        return t
    whole = trainer(tmp_path/'a')
    whole.run(phase)
    class Killed(Exception): pass
    part, step = trainer(tmp_path/'b'), CodecTrainer.step
    def dies(ph, i):
        if i == 4: raise Killed
        return step(part, ph, i)
    part.step = dies
    with pytest.raises(Killed): part.run(phase, save_every=2)
    rest = trainer(tmp_path/'b')
    rest.run(phase)
    assert all((a == b).all() for a, b in zip(whole.model.state_dict().values(), rest.model.state_dict().values()))

def test_ctrl_c_keeps_the_step(tmp_path):
    "Training that Ctrl-C stopped goes on to the same weights; a second Ctrl-C does not wait"
    phase, crops = CodecPhase('quantized', 5, warmup=2), Crops([noise(1, 9000, seed=i) for i in range(3)], 1280, 2)
    def trainer(folder, times=0):
        t = CodecTrainer(encodec(), crops, folder, 32000)
        step = t.step
        def stepped(ph, i):
            if i == 2:
                for _ in range(times): os.kill(os.getpid(), signal.SIGINT)
            return step(ph, i)
        if times: t.step = stepped
        return t
    before, whole = signal.getsignal(signal.SIGINT), trainer(tmp_path/'a')
    whole.run(phase)
    with pytest.raises(Interrupted, match='after 3 of 5 steps'): trainer(tmp_path/'b', 1).run(phase)
    rest = trainer(tmp_path/'b')
    rest.run(phase)
    assert all((a == b).all() for a, b in zip(whole.model.state_dict().values(), rest.model.state_dict().values()))
    with pytest.raises(Interrupted, match='there is no checkpoint yet'): trainer(tmp_path/'c', 2).run(phase)
    with pytest.raises(Interrupted, match='the last checkpoint is'): trainer(tmp_path/'c', 2).run(phase, save_every=1)
    assert signal.getsignal(signal.SIGINT) is before

def test_one_batch_overfits(tmp_path):
    t = torch.arange(8960)/32000
    clip = .3*torch.sin(2*math.pi*440*t)[None]
    tr = CodecTrainer(encodec(num_filters=8), Crops([clip], 8960, 1), tmp_path, 32000)
    first = tr.run(CodecPhase('autoencoder', 1, warmup=1))['spectral']
    last = tr.run(CodecPhase('autoencoder', 60, 3e-3, 5), log_every=10)['spectral']
    assert last < .8*first

def test_held_out_takes():
    assert held_out('fsdd/7_lucas_9.flac') and held_out('fsdd/7_theo_5.flac')
    assert not held_out('fsdd/7_lucas_10.flac') and not held_out('fsdd/7_theo_45.flac')
    assert held_out('ljspeech/LJ001-0080.flac') and not held_out('ljspeech/LJ001-0001.flac')
    assert 50 < sum(held_out(f'music/x/{i}.flac') for i in range(1000)) < 150

def test_crops_need_clips():
    with pytest.raises(SoundlmError, match='no clips'): Crops([], 100)
