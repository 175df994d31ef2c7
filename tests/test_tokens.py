"Token stores: properties over many shapes, a process that is killed, and a corpus that misbehaves"
import json, os, signal, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from soundlm.core import SoundlmError, TokenError
from soundlm.tokens import Crops, TokenStore, as_item, chunks, codec_facts, encode_clips, fingerprint, to_rows, tokenize, write_shard

class Levels:
    "Codes are the loudness of every `hop` samples, in as many codebooks as there are strides"
    sample_rate, hop = 8000, 80
    def __init__(self, strides=(1, 1), size=64, name='levels', sha='a'*12):
        self.strides, self.codebook_size, self.name, self.sha, self.codebooks = strides, size, name, sha, len(strides)
        self.frame_rate = self.sample_rate/self.hop/max(strides)
    def encode(self, wav):
        n = self.hop*max(self.strides)
        x = torch.nn.functional.pad(wav[:, 0], (0, -wav.shape[-1] % n)).abs()
        codes = [(x.unfold(-1, self.hop*s, self.hop*s).amax(-1)*(self.codebook_size - 1)).long() for s in self.strides]
        return torch.stack(codes, 1) if len(set(self.strides)) == 1 else codes

def clip(i, n=None, split=None):
    g = torch.Generator().manual_seed(i)
    wavs = [torch.rand(1, n or 800*(1 + (i + s) % 3), generator=g) for s in (0, 1)]
    return dict(id=f'c{i}', split=split or ('valid' if i % 3 == 2 else 'train'), caption=f'clip {i}', attributes=dict(i=i), sample_rate=8000, sections=lambda: wavs)

@pytest.mark.parametrize('strides', [(1,), (1, 1, 1, 1), (4, 2, 1), (8, 4, 2, 1)])
@pytest.mark.parametrize('batch', [1, 5])
def test_what_goes_in_comes_out(tmp_path, strides, batch):
    codec = Levels(strides, size=4096)
    corpus = [clip(i, n=640*(1 + i % 4)) for i in range(11)]
    store = TokenStore.load(tokenize(corpus, codec, tmp_path, shard=4, batch=batch), codec)
    assert len(store) == 22 and store.splits == dict(train=16, valid=6)
    for i in range(22):
        want = codec.encode(corpus[i//2]['sections']()[i % 2][None])
        got, row = store.codes(i), store.row(i)
        assert (row['id'], row['section'], row['attributes']) == (f'c{i//2}', i % 2, dict(i=i//2))
        assert row['seconds'] == pytest.approx(640*(1 + i//2 % 4)/8000)
        for a, b in zip(got if isinstance(got, list) else got, want if isinstance(want, list) else want[0]): assert torch.equal(a, b.flatten())
        assert store.others(i) == [i ^ 1]

@pytest.mark.parametrize('strides', [(1, 1), (4, 2, 1)])
def test_crops_stay_in_step(tmp_path, strides):
    codec = Levels(strides, size=4096)
    store = TokenStore.load(tokenize([clip(i, n=6400) for i in range(3)], codec, tmp_path), codec)
    starts = set()
    for seed in range(20):
        out = store.stack([1, 4], 3, np.random.default_rng(seed))
        books = out.unbind(1) if torch.is_tensor(out) else out
        full, ratio = [torch.as_tensor(b.astype(np.int64)) for b in store.raw(4)], [max(strides)//s for s in strides]
        at = [k for k in range(store.frames(4) - 2) if all(torch.equal(b[1], f[k*r:(k + 3)*r]) for b, f, r in zip(books, full, ratio))]
        assert at
        starts |= set(at)
    assert len(starts) > 5

def test_views_share_codes(tmp_path):
    codec = Levels()
    store = TokenStore.load(tokenize([clip(i) for i in range(9)], codec, tmp_path), codec)
    valid = store.split('valid')
    assert [valid.row(i)['id'] for i in range(len(valid))] == ['c2', 'c2', 'c5', 'c5', 'c8', 'c8']
    assert valid.values is store.values and valid.others(1) == [0]
    assert torch.equal(valid.codes(2), store.codes(10))
    batch = Crops(valid, 5).batch(range(6), np.random.default_rng(0))
    assert batch['codes'].shape == (6, 2, 5) and batch['codes'].dtype == torch.int64

def test_the_largest_code_fits(tmp_path):
    codec = Levels(size=2**15)
    tokenize([dict(id='loud', sample_rate=8000, wav=torch.ones(1, 800))], codec, tmp_path)
    assert TokenStore.load(tmp_path, codec).codes(0).unique().tolist() == [2**15 - 1]
    with pytest.raises(TokenError, match='int16'): codec_facts(Levels(size=2**16))

# corpora of all kinds
def test_items():
    wav = torch.zeros(1, 80)
    kinds = [dict(wav=wav), dict(wav=lambda: wav), dict(sections=[wav]), dict(sections=lambda: [wav])]
    for kind in kinds:
        for make in (dict, SimpleNamespace):
            item = as_item(make(id='a', sample_rate=8000, **kind))
            assert item.split == 'train' and item.attributes is None and [w.shape for w in item.read()] == [(1, 80)]
    for bad in (dict(id='a', sample_rate=8000), dict(id='a', wav=wav), dict(sample_rate=8000, wav=wav), 'song.wav'):
        with pytest.raises(SoundlmError, match='expected id'): as_item(bad)

def test_other_rates_are_resampled():
    rows = to_rows([dict(id='a', sample_rate=16000, wav=torch.rand(1, 16000))], Levels())
    assert rows[0]['seconds'] == 1 and len(rows[0]['codes'][0]) == 100 and rows[0]['sample_rate'] == 8000

def test_generator_without_a_length(tmp_path):
    codec = Levels()
    tokenize((clip(i) for i in range(5)), codec, tmp_path, shard=2)
    assert len(list(tmp_path.glob('*.parquet'))) == 3 and len(TokenStore.load(tmp_path, codec)) == 10
    tokenize((clip(i) for i in range(5)), codec, tmp_path, shard=2)
    assert len(TokenStore.load(tmp_path)) == 10

def test_synthcaps(tmp_path):
    from soundlm.music.corpus import SynthCaps
    class Fast(Levels): sample_rate, hop = 32000, 640
    store = TokenStore.load(tokenize(SynthCaps('test'), Fast(), tmp_path, clips=2))
    assert len(store) == 4 and store.splits == dict(test=4)
    assert {'style', 'instrument', 'tempo'} <= set(store.row(0)['attributes'])
    assert store.frames(0) == 300 and not torch.equal(store.codes(0), store.codes(1))
    with pytest.raises(SoundlmError, match='endless'): tokenize(SynthCaps('test'), Fast(), tmp_path/'other')

def test_folder(tmp_path, data):
    from soundlm.music.corpus import FolderCorpus
    import shutil
    speech = sorted(p for p in data('speech').rglob('*') if p.suffix in ('.wav', '.flac', '.mp3', '.ogg'))[:2] or pytest.skip('needs recordings in SOUNDLM_DATA/speech')
    (tmp_path/'songs').mkdir()
    for p in speech: shutil.copy(p, tmp_path/'songs')
    store = TokenStore.load(tokenize(FolderCorpus(tmp_path/'songs'), Levels(), tmp_path/'tokens'))
    assert len({store.row(i)['id'] for i in range(len(store))}) == 2

# killed, shared, refused
script = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_tokens import *
class Listed(list):
    def __getitem__(self, i):
        if i == 5: os.kill(os.getpid(), signal.SIGKILL)
        return clip(i)
tokenize(Listed(range(10)), Levels(), {out!r}, shard=2)
"""
def test_killed_and_resumed(tmp_path):
    codec, corpus = Levels(), [clip(i) for i in range(10)]
    code = script.format(tests=str(Path(__file__).parent), out=str(tmp_path/'cut'))
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert res.returncode == -signal.SIGKILL, res.stderr
    assert [f.name for f in sorted((tmp_path/'cut').iterdir())] == ['00000.parquet', '00001.parquet', 'store.json']
    with pytest.raises(TokenError, match='2 of 5 files'): TokenStore.load(tmp_path/'cut', codec)
    tokenize(corpus, codec, tmp_path/'whole', shard=2), tokenize(corpus, codec, tmp_path/'cut', shard=2)
    for f in (tmp_path/'whole').iterdir(): assert f.read_bytes() == (tmp_path/'cut'/f.name).read_bytes()

def test_a_clip_that_fails_leaves_no_file(tmp_path):
    def broken(): raise SoundlmError('cannot read clip 3')
    corpus = [clip(i) if i != 3 else {**clip(i), 'sections': broken} for i in range(4)]
    with pytest.raises(SoundlmError, match='clip 3'): tokenize(corpus, Levels(), tmp_path, shard=2)
    assert [f.name for f in sorted(tmp_path.iterdir())] == ['00000.parquet', 'store.json']

@pytest.mark.parametrize('kw', [dict(shard=3), dict(clips=3)])
def test_another_cut_is_refused(tmp_path, kw):
    corpus = [clip(i) for i in range(4)]
    tokenize(corpus, Levels(), tmp_path, shard=2)
    with pytest.raises(TokenError, match=next(iter(kw))): tokenize(corpus, Levels(), tmp_path, **{'shard': 2, **kw})
    with pytest.raises(TokenError, match='codec'): tokenize(corpus, Levels(sha='b'*12), tmp_path, shard=2)

class Named:
    "A corpus with an index, known by its attributes"
    def __init__(self, seed): self.seed = seed
    def __len__(self): return 4
    def __getitem__(self, i): return clip(i)

def test_another_corpus_is_refused(tmp_path):
    tokenize(Named(0), Levels(), tmp_path, shard=2)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    assert json.loads(before['store.json'])['corpus'] == 'Named(seed=0)'
    with pytest.raises(TokenError, match='corpus'): tokenize(Named(1), Levels(), tmp_path, shard=2)
    with pytest.raises(TokenError, match='corpus'): tokenize([clip(i + 4) for i in range(4)], Levels(), tmp_path, shard=2)
    tokenize(Named(0.), Levels(), tmp_path, shard=2), tokenize((clip(i) for i in range(4)), Levels(), tmp_path, clips=4, shard=2)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before

def test_older_stores_have_no_fingerprint(tmp_path):
    tokenize(Named(0), Levels(), tmp_path, shard=2)
    facts = json.loads((tmp_path/'store.json').read_text())
    del facts['corpus']
    (tmp_path/'store.json').write_text(json.dumps(facts))
    assert len(TokenStore.load(tmp_path)) == 8
    tokenize(Named(1), Levels(), tmp_path, shard=2)

def test_fingerprints():
    from soundlm.music.corpus import SynthCaps
    assert fingerprint(SynthCaps('test', 3)) == "SynthCaps(seconds=6, seed=3, split='test')"
    made = [fingerprint(c) for c in ([clip(0)], [clip(1)], (clip(0), clip(1)), SynthCaps(), SynthCaps(seconds=7.), SimpleNamespace(fingerprint='mine'))]
    assert len({*made}) == 6 and made[-1] == 'mine' and None not in made
    assert fingerprint([SimpleNamespace(id='c0')]) == made[0]
    for unknown in (iter([clip(0)]), [1, 2], (clip(i) for i in (0, 1))): assert fingerprint(unknown) is None

def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(SoundlmError, match='Cannot write'): tokenize([clip(0)], Levels(), tmp_path/'file'/'tokens')

@pytest.fixture
def store(tmp_path):
    return tokenize([clip(i) for i in range(4)], Levels(), tmp_path/'store', shard=2)

@pytest.mark.parametrize('codec', [Levels(name='other'), Levels(sha='b'*12)], ids=['name', 'weights'])
def test_another_codec_is_named(store, codec):
    with pytest.raises(TokenError) as e: TokenStore.load(store, codec)
    for said in ('levels', 'a'*12, codec.name, codec.sha): assert said in str(e.value)

def test_files_of_two_codecs_are_found(store):
    write_shard(to_rows([clip(9)], Levels(sha='c'*12)), store/'00001.parquet')
    with pytest.raises(TokenError, match='cccccccccccc'): TokenStore.load(store)

@pytest.mark.parametrize('bad', [64, -1])
def test_codes_that_cannot_be(store, bad):
    rows = to_rows([clip(2), clip(3)], Levels())
    rows[1]['codes'][0][3] = bad
    write_shard(rows, store/'00001.parquet')
    with pytest.raises(TokenError, match='damaged'): TokenStore.load(store)

@pytest.mark.parametrize('keep', [0, 7, 300])
def test_truncated_file(store, keep):
    f = store/'00001.parquet'
    f.write_bytes(f.read_bytes()[:keep])
    with pytest.raises(TokenError, match='not a whole Parquet file'): TokenStore.load(store)

def test_other_version_and_no_store(store, tmp_path):
    facts = json.loads((store/'store.json').read_text())
    (store/'store.json').write_text(json.dumps({**facts, 'schema_version': 99}))
    with pytest.raises(TokenError, match='schema version 99'): TokenStore.load(store)
    for path in (tmp_path, tmp_path/'nowhere'):
        with pytest.raises(TokenError, match='store.json'): TokenStore.load(path)

@pytest.mark.parametrize('text', ['', '{}', '[]', 'null', '"x"', 'half'])
def test_damaged_facts(store, text):
    file = store/'store.json'
    file.write_text(file.read_text()[:60] if text == 'half' else text)
    for f in (lambda: TokenStore.load(store), lambda: tokenize([clip(i) for i in range(4)], Levels(), store, shard=2)):
        with pytest.raises(TokenError, match='delete .* and tokenize again'): f()

def test_chunks_cover_a_corpus_once():
    for n, shard in ((1, 1), (7, 3), (6, 3), (2, 9)):
        for corpus in (list(range(n)), iter(range(n))):
            got = dict(chunks(corpus, shard, n))
            assert sum(got.values(), []) == list(range(n)) and list(got) == list(range(len(got)))
            assert all(len(o) == shard for o in list(got.values())[:-1])
