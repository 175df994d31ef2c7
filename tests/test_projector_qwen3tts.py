"Qwen3-TTS behind the decoder contract. What needs the package runs in a process of its own, with the folder that `make` fills first on its path"
import pytest
import overlay
from soundlm.core import HubError, SoundlmError
from soundlm.projector.qwen3tts import load_qwen3tts, prefix, qwen_class, qwen_folder, schedule

def test_against_the_package_in_its_own_process(): overlay.passes('qwen3tts_checks.py')

def test_without_the_package_it_says_what_to_do(tmp_path):
    for call in (qwen_class, load_qwen3tts, lambda: load_qwen3tts(tmp_path)):
        with pytest.raises(SoundlmError, match='environment of its own') as e: call()
        for line in ('python -m venv', 'pip install "soundlm[qwen3tts]"'): assert line in str(e.value)

def test_a_folder_that_is_no_qwen3tts(tmp_path):
    with pytest.raises(HubError, match='speech_tokenizer'): qwen_folder(str(tmp_path))
    with pytest.raises(HubError, match='omni'): qwen_folder('Qwen/Qwen3-TTS-12Hz-1.7B-Base') # offline: names the twin
    (tmp_path/'speech_tokenizer').mkdir()
    (tmp_path/'speech_tokenizer'/'config.json').write_text('{}')
    assert qwen_folder(str(tmp_path)) == tmp_path

@pytest.mark.parametrize('n', [1, 2, 7])
def test_schedule(n):
    for t in (0, 1, n, n + 5):
        got = schedule(n, t)
        assert len(got) == t + 1 and got[0] == 0
        assert [i for i in got if i >= 0] == list(range(min(n, t) + 1)) and all(i == -1 for i in got[n + 1:])
    with pytest.raises(SoundlmError): schedule(0, 3)

def test_prefix():
    assert len(prefix()) == 8 and len(prefix('english')) == 9 and len(prefix('english', True)) == 10
    for rows in (prefix(), prefix('english', True)):
        assert rows[-1] == ('vector 0', 'codec_bos') and rows[-2] == ('tts_bos', 'codec_pad') and [c for _, c in rows[:3]] == [None]*3
