"Reads settings.ini, so that name, version and owner stand in one place"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

# Lower bounds only, except where a newer release is known to break; the versions that were tested together stand in constraints.txt
core = '''torch>=2.9  fastcore>=1.8,<1.15 numpy>=1.26  transformers>=4.57  tokenizers>=0.22  datasets>=4  huggingface_hub>=0.34  safetensors>=0.5
    snac>=1.2  soundfile>=0.12.1  soxr>=0.5  scipy>=1.11  librosa>=0.10.2  lightning>=2.5  symusic>=0.5.8,<0.6  pretty_midi>=0.2.10
    typer>=0.15  rich>=13  pyyaml>=6  matplotlib>=3.8'''.split()
extras = dict(
    dev=cfg['nbdev_pins'].split() + '''jupyter  ipykernel  nbclient  pytest  hypothesis  gguf>=0.17  accelerate
        sphinx>=8,<10  myst-nb>=1.3  furo  sphinx-mathjax-offline  espeakng-loader  playwright>=1.45'''.split(), # notebooks speak with espeak-ng; the listening test is tried in a browser
    judges='laion-clap frechet-audio-distance encodec torchmetrics onnxruntime requests hear21passt'.split(),
    speech=['espeakng-loader'], # espeak-ng is GPL, so it is never a core dependency
    gguf=['gguf>=0.17', 'accelerate'],
    llamacpp=['llama-cpp-python>=0.3.16', 'gguf>=0.17'], # built from source: notebook 40 says how
    qwen3tts=['qwen-tts>=0.1.1'], # it pins an older transformers: give it an environment of its own
    wandb=['wandb>=0.19'])
scripts = ['soundlm=soundlm.cli:main', *(f'soundlm_{o}=soundlm.build:{o}' for o in ('prepare','docs','check','execute'))]

readme = here/'README.md'
setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0', license_files=['LICENSE'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path']+'.*']), include_package_data=True, zip_safe=False,
    python_requires='>='+cfg['min_python'], install_requires=core, extras_require=extras,
    entry_points=dict(console_scripts=scripts, nbdev=[f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]),
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Developers', 'Intended Audience :: Science/Research',
        'Topic :: Multimedia :: Sound/Audio', *(f'Programming Language :: Python :: 3.{v}' for v in (11,12,13))])
