"A zoo with a random two-layer Model A and Model B: whatever the command line does around a model can be tested without a trained one"
import shutil
from pathlib import Path

zoo = Path(__file__).resolve().parent.parent/'data'/'zoo'

def text_encoder(folder):
    "An untrained `t5-tiny` with a small vocabulary of its own"
    from soundlm import hub
    from soundlm.music import text
    from soundlm.music.corpus import SynthCaps
    tok = text.fit_tokenizer([c.caption for c in SynthCaps('train')[:200]], 400)
    text.t5_tiny(tok).save(folder, hub.card('t5-tiny', 'Untrained.', {}))

def music_a(folder, layers=2):
    "An untrained Model A that belongs to the zoo's mel_32khz and t5-tiny"
    import torch
    from soundlm import hub
    from soundlm.music.baseline import MusicA, music_a_tiny
    torch.manual_seed(0)
    parts = dict(codec=hub.load('mel_32khz'), encoder=hub.load('t5-tiny'))
    m = MusicA(music_a_tiny(dim=32, n_heads=1, n_layers=layers, text_dim=parts['encoder'].dim, max_frames=300))
    m.parts = parts
    m.save(folder, hub.card('music-a', 'Random.', {}))

def music_b(folder, layers=2):
    "An untrained Model B over the same parts"
    import torch
    from soundlm import hub
    from soundlm.music.fusion import MusicB, music_b_tiny
    torch.manual_seed(0)
    parts = dict(codec=hub.load('mel_32khz'), encoder=hub.load('t5-tiny'))
    m = MusicB(music_b_tiny(dim=32, n_heads=1, n_layers=layers, hidden=64, text_dim=parts['encoder'].dim))
    for b in m.trunk.blocks: torch.nn.init.normal_(b.cross.out.weight) # what it looks at must be heard
    m.parts = parts
    m.save(folder, hub.card('music-b', 'Random.', {}))

def build(folder):
    "A zoo for SOUNDLM_ZOO, which has to point there already"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ('mel_32khz','probe-music','probe-key','clap-tiny'): shutil.copytree(zoo/name, folder/name)
    text_encoder(folder/'t5-tiny')
    music_a(folder/'music-a')
    music_b(folder/'music-b')
    return folder

def needs():
    "Fail where the parts that a random zoo borrows are missing"
    for name in ('mel_32khz','probe-music','probe-key','clap-tiny'):
        assert (zoo/name/'config.json').exists(), f'{name} is missing from data/zoo'
