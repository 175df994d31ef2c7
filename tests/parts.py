"Random parts in the published formats: the real widths and rates, two layers, few filters. Nothing is downloaded"
import json
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def encodec(folder, filters=4):
    "`facebook/encodec_32khz`: every number that the tokens depend on is the real one"
    from transformers import EncodecConfig, EncodecModel
    cfg = EncodecConfig(sampling_rate=32000, audio_channels=1, target_bandwidths=[2.2], upsampling_ratios=[8,5,4,4], num_filters=filters,
        hidden_size=128, codebook_size=2048, codebook_dim=128, num_lstm_layers=2, norm_type='weight_norm', use_causal_conv=False,
        use_conv_shortcut=False, normalize=False, chunk_length_s=None, overlap=None)
    model = EncodecModel(cfg)
    for l in model.quantizer.layers: l.codebook.embed.normal_() # transformers leaves them at zero
    model.save_pretrained(folder)

def snac(folder):
    "`hubertsiuzdak/snac_24khz`, as a config and a `.bin`"
    import torch
    from snac import SNAC
    cfg = dict(sampling_rate=24000, encoder_dim=8, encoder_rates=[2,4,8,8], decoder_dim=64, decoder_rates=[8,8,4,2], attn_window_size=None,
        codebook_size=4096, codebook_dim=8, vq_strides=[4,2,1], noise=True, depthwise=True)
    (folder/'config.json').write_text(json.dumps(cfg))
    torch.save(SNAC(**cfg).state_dict(), folder/'pytorch_model.bin')

def t5(folder, d=768, layers=2):
    "`google-t5/t5-base`: its width and heads, the zoo's tokenizer"
    import shutil
    from tokenizers import Tokenizer
    from transformers import T5Config, T5EncoderModel
    tok = root/'data'/'zoo'/'t5-tiny'/'tokenizer.json'
    cfg = T5Config(vocab_size=Tokenizer.from_file(str(tok)).get_vocab_size(), d_model=d, d_kv=64, num_heads=12, d_ff=256, num_layers=layers)
    T5EncoderModel(cfg).save_pretrained(folder)
    shutil.copy(tok, folder/'tokenizer.json')

def clap(folder, width=128):
    "`laion/larger_clap_music`: its widths, window and mel bands, one block a stage, one layer of text, the zoo's tokenizer"
    import shutil
    from tokenizers import Tokenizer
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel
    tok = root/'data'/'zoo'/'clap-tiny'/'tokenizer.json'
    text = dict(vocab_size=Tokenizer.from_file(str(tok)).get_vocab_size(), num_hidden_layers=1)
    sound = dict(depths=[1,1,1,1], hidden_size=8*width, patch_embeds_hidden_size=width)
    ClapModel(ClapConfig(text_config=text, audio_config=sound)).save_pretrained(folder)
    ClapFeatureExtractor(frequency_min=50, truncation='rand_trunc').save_pretrained(folder)
    shutil.copy(tok, folder/'tokenizer.json')

builders = {'facebook/encodec_32khz':encodec, 'hubertsiuzdak/snac_24khz':snac, 'google-t5/t5-base':t5, 'laion/larger_clap_music':clap}

def build(name, folder):
    "Make the part that a hub id stands for, once a folder"
    import torch
    if name not in builders: raise KeyError(f'no random part for {name!r}: add a builder to tests/parts.py')
    folder = Path(folder)/name.replace('/','--')
    if not (folder/'config.json').exists():
        folder.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            builders[name](folder)
    return folder
