"A tiny random Qwen3-TTS of the package's own classes; imports only where the package does, in a process of its own"
import os, sys
from pathlib import Path
import numpy as np, torch
from reference import Empty, importable

def qwen_classes():
    "The package's classes. `sox`, `onnxruntime` and torchaudio serve its 25 Hz tokenizer alone, which nothing here calls: empty modules stand in where they do not load"
    import torch._dynamo, transformers.generation # they ask what is installed, before anything stands in for it
    for name in ('sox', 'onnxruntime', 'torchaudio', 'torchaudio.compliance', 'torchaudio.compliance.kaldi'):
        if name in sys.modules or importable(name): continue
        sys.modules[name] = Empty(name)
        sys.modules[name].__path__ = []
        if '.' in name: setattr(sys.modules[name.rpartition('.')[0]], name.rpartition('.')[2], sys.modules[name])
    from qwen_tts.core.models import modeling_qwen3_tts as m
    from qwen_tts.core.models.configuration_qwen3_tts import Qwen3TTSConfig
    from qwen_tts.core.tokenizer_12hz import modeling_qwen3_tts_tokenizer_v2 as t
    from qwen_tts.core.tokenizer_12hz.configuration_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Config
    from qwen_tts.inference.qwen3_tts_tokenizer import Qwen3TTSTokenizer
    return m, Qwen3TTSConfig, t, Qwen3TTSTokenizerV2Config, Qwen3TTSTokenizer

def datasets_beside_an_older_hub():
    "An environment of its own gets a `datasets` that fits its huggingface_hub; this folder borrows the newer one, which wants names for the hub's buckets that nothing here calls"
    import importlib
    for where, names in {'errors': ['BucketNotFoundError'], 'hf_file_system': ['HfFileSystemResolvedBucketPath', 'HfFileSystemResolvedRepositoryPath']}.items():
        m = importlib.import_module(f'huggingface_hub.{where}')
        for n in names: hasattr(m, n) or setattr(m, n, type(n, (Exception,), {}))
    import httpx, huggingface_hub.utils
    huggingface_hub.utils.httpx = httpx

specials = '<|im_start|>', '<|im_end|>', '<|endoftext|>', '<tts_pad>', '<tts_text_bos>', '<tts_text_eod>'

def tiny_tokenizer(texts, size=330):
    "Byte-level BPE with Qwen's pre-tokeniser, normaliser and role tokens"
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    res = Tokenizer(models.BPE())
    res.normalizer = normalizers.NFC()
    res.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), 'isolated'), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    res.post_processor, res.decoder = processors.ByteLevel(trim_offsets=False), decoders.ByteLevel()
    res.train_from_iterator(['assistant\n']*50 + list(texts), trainers.BpeTrainer(vocab_size=size - len(specials), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    res.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(tokenizer_object=res, eos_token='<|im_end|>', pad_token='<|endoftext|>')

def tiny_config(tokenizer, K=64, books=16, width=32, text_width=24):
    "Every number small, every part there: 16 codebooks, a narrower code predictor, a speaker encoder, multimodal RoPE"
    Config = qwen_classes()[1]
    ids = dict(zip(('codec_eos_token_id', 'codec_think_id', 'codec_nothink_id', 'codec_think_bos_id', 'codec_think_eos_id', 'codec_pad_id', 'codec_bos_id'), range(K, K + 7)))
    predictor = dict(vocab_size=K, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_code_groups=books, initializer_range=.3)
    talker = dict(code_predictor_config=predictor, vocab_size=K + 1024, hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, num_code_groups=books, text_hidden_size=text_width, text_vocab_size=len(tokenizer), initializer_range=.3, rope_scaling=dict(rope_type='default', mrope_section=[2, 1, 1], interleaved=True),
        codec_language_id=dict(english=K + 8, welsh_dialect=K + 9), spk_id=dict(anna=K + 10, bryn=K + 11), spk_is_dialect=dict(anna=False, bryn='welsh_dialect'), **ids)
    speaker = dict(enc_dim=width, enc_channels=[8, 8, 8, 8, 24], enc_attention_channels=8, enc_res2net_scale=2, enc_se_channels=8)
    at = {n: tokenizer.convert_tokens_to_ids(n) for n in specials}
    return Config(talker_config=talker, speaker_encoder_config=speaker, tokenizer_type='qwen3_tts_tokenizer_12hz', tts_model_size='tiny', tts_model_type='base', im_start_token_id=at['<|im_start|>'],
        im_end_token_id=at['<|im_end|>'], tts_pad_token_id=at['<tts_pad>'], tts_bos_token_id=at['<tts_text_bos>'], tts_eos_token_id=at['<tts_text_eod>'])

def tiny_codec(K=64, books=16):
    "A random speech tokenizer of the 12 Hz classes: Mimi's encoder, their decoder, 1920 samples a frame"
    from transformers import EncodecFeatureExtractor
    _, _, t, Config, Wrapper = qwen_classes()
    encoder = dict(hidden_size=32, num_filters=2, codebook_size=K, codebook_dim=8, vector_quantization_hidden_dimension=8, num_quantizers=books, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
        intermediate_size=32, upsample_groups=32, sliding_window=8, frame_rate=12.5)
    decoder = dict(codebook_size=K, hidden_size=16, latent_dim=16, codebook_dim=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8, intermediate_size=32, num_hidden_layers=1, num_quantizers=books, decoder_dim=32, sliding_window=8)
    torch.manual_seed(5)
    model = t.Qwen3TTSTokenizerV2Model(Config(encoder_config=encoder, decoder_config=decoder)).eval()
    g = torch.Generator().manual_seed(6)
    for n, p in model.named_parameters():
        if n.endswith('embedding_sum'): p.data.normal_(generator=g)
        elif n.startswith('decoder') and p.ndim == 3: p.data.normal_(generator=g).mul_(p[0].numel()**-.5) # loud enough to be told apart
    for n, b in model.named_buffers():
        if n.endswith('embed_sum'): b.data.normal_(generator=g)
    res = Wrapper()
    res.model, res.config, res.device = model, model.config, torch.device('cpu')
    res.feature_extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=24000)
    return res

texts = ['three seven one', 'nine oh two four', 'the cat sat on the mat', 'five', 'six six eight zero one']

def tiny_qwen(seed=0, **kw):
    "The model with its speech tokenizer, and the text tokenizer"
    m = qwen_classes()[0]
    tokenizer = tiny_tokenizer(texts)
    torch.manual_seed(seed)
    model = m.Qwen3TTSForConditionalGeneration(tiny_config(tokenizer, **kw)).eval()
    model.load_speech_tokenizer(tiny_codec())
    model.load_generate_config({})
    return model, tokenizer
