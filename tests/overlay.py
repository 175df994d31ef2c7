"qwen-tts pins a transformers that is not ours: both lie in a folder beside the environment, and tests of them run in a process that looks there first"
import os, re, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
folder = Path(sys.prefix)/'qwen3tts'

def install():
    "Fill the folder as `make` does, with the versions that the Makefile names, where nobody has done so yet"
    if (folder/'qwen_tts').is_dir(): return
    wanted = re.search(r'^QWEN := (.+)$', (root/'Makefile').read_text('utf-8'), re.M)[1].split()
    got = subprocess.run([sys.executable, '-m', 'pip', 'install', '--disable-pip-version-check', '-q', '--no-deps', '--target', str(folder), *wanted], capture_output=True, text=True, timeout=600)
    assert got.returncode == 0, f'{wanted} could not be installed into {folder}: {got.stderr[-1500:]}'

def passes(name, **env):
    "Every test of a file in this folder, in such a process: none may fail, and none may be left out"
    install()
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(folder), str(root)]), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1') | env
    run = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', str(root/'tests'/name)], env=env, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    wrote = len(re.findall(r'^def test_', (root/'tests'/name).read_text('utf-8'), re.M))
    assert int(re.search(r'(\d+) passed', run.stdout)[1]) >= wrote > 0 and 'skipped' not in run.stdout, run.stdout
