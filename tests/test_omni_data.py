"Pairs of text and speech: layouts of folders, what is refused, and the rows of ids that a model learns from"
import json, warnings
from types import SimpleNamespace

import numpy as np, pytest, torch
from hypothesis import assume, given, settings, strategies as st
from soundlm import hub
from soundlm.audio import save
from soundlm.core import AudioError, SoundlmError, SoundlmWarning, TokenError, rng
from soundlm.omni import corpus as C, dataset as D
from soundlm.omni.tokenizer import SNACTokenizer, beside
from soundlm.tokens import TokenStore

some = settings(max_examples=60, deadline=None)
texts = 'Turn on the light.', 'Where is my red book?', 'Good night!'

def record(path, i, rate=24_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(path, .3*torch.sin(torch.arange(rate//2)*(.05 + .02*i))[None], rate)

@pytest.fixture(scope='module')
def text(): return hub.load('bpe-tiny')
@pytest.fixture(scope='module')
def audio(text): return beside(text, 'mel_24khz')

# folders
def lj(top):
    for i in range(3): record(top/'wavs'/f'LJ-{i}.wav', i, 22_050)
    (top/'metadata.csv').write_text('\n'.join(f'LJ-{i}|"raw {t}|{t}' for i, t in enumerate(texts)), 'utf-8')
def libri(top):
    for part, who, i in (('train-clean-100', 19, 0), ('train-clean-100', 26, 1), ('dev-clean', 84, 2)):
        record(top/part/str(who)/'7'/f'{who}-7-0000.flac', i, 16_000)
        (top/part/str(who)/'7'/f'{who}-7.trans.txt').write_text(f'{who}-7-0000 {C.plain(texts[i]).upper()}\n')
def common(top):
    head = 'client_id\tpath\tsentence\tlocale\n'
    for i in range(3): record(top/'clips'/f'c_{i}.mp3', i)
    (top/'train.tsv').write_text(head + ''.join(f'p{i}\tc_{i}.mp3\t{texts[i]}\ten\n' for i in range(2)), 'utf-8')
    (top/'dev.tsv').write_text(head + f'p2\tc_2.mp3\t{texts[2]}\ten\n', 'utf-8')
def mine(top):
    for i in range(3): record(top/('train', 'train', 'validation')[i]/f'{i}.wav', i)
    (top/'train'/'metadata.csv').write_text(f'\ufefffile_name,transcription,speaker\n0.wav,{texts[0]},anna\n1.wav,"Where is\nmy red book?",ben\n', 'utf-8')
    (top/'validation'/'metadata.jsonl').write_text(json.dumps(dict(file_name='2.wav', text=texts[2], speaker='carol', rate='slow')))

@pytest.mark.parametrize('write,read,n', [(lj, C.ljspeech, 3), (libri, C.librispeech, 3), (common, C.common_voice, 2), (mine, C.audiofolder, 3)])
def test_layouts(tmp_path, write, read, n):
    write(tmp_path)
    items = C.pairs_of(tmp_path)
    assert C.layout_of(tmp_path) is read and len(items) == n
    for u in items:
        assert u.text and u.speaker and u.path.is_file() and u.sample_rate == 24_000
        wav = u.wav()
        assert wav.ndim == 2 and wav.dtype == torch.float32 and abs(wav.shape[1] - 12_000) < 1500
    assert {C.plain(u.text) for u in items} == {C.plain(o) for o in texts[:n]}
    assert len({u.id for u in items}) == n

def test_splits_of_folders(tmp_path):
    libri(tmp_path/'ls'); mine(tmp_path/'af'); common(tmp_path/'cv')
    assert sorted(u.split for u in C.pairs_of(tmp_path/'ls')) == ['train', 'train', 'valid']
    assert [u.split for u in C.pairs_of(tmp_path/'af')] == ['train', 'train', 'valid']
    assert [u.split for u in C.common_voice(tmp_path/'cv', 'valid')] == ['valid']
    assert C.pairs_of(tmp_path/'ls'/'dev-clean')[0].split == 'valid' # one part alone
    assert C.pairs_of(tmp_path/'af')[2].attributes == dict(rate='slow')

@pytest.mark.parametrize('write,spoil,says', [
    (lj, lambda p: (p/'wavs'/'LJ-1.wav').unlink(), 'LJ-1'),
    (libri, lambda p: (p/'dev-clean'/'84'/'7'/'84-7-0000.flac').unlink(), '84-7-0000'),
    (common, lambda p: (p/'clips'/'c_1.mp3').unlink(), 'c_1.mp3'),
    (common, lambda p: (p/'train.tsv').write_text('client_id\tfile\nx\ty\n'), 'path and sentence'),
    (common, lambda p: (p/'train.tsv').write_text('client_id\tpath\tsentence\n'), 'rows in train.tsv'),
    (mine, lambda p: (p/'train'/'metadata.csv').write_text('file_name,title\n0.wav,x\n'), 'text or transcription'),
    (mine, lambda p: (p/'train'/'metadata.csv').write_text('name,text\n0.wav,x\n'), 'file_name'),
    (mine, lambda p: (p/'train'/'metadata.csv').write_text('file_name,text\n0.wav,\n'), 'train/0'),
    (mine, lambda p: (p/'train'/'metadata.csv').write_text('file_name,text\n../validation/2.wav,x\n'), 'inside'),
    (mine, lambda p: (p/'train'/'metadata.csv').write_bytes('file_name,text\n0.wav,Grüße\n'.encode('latin-1')), 'UTF-8'),
    (mine, lambda p: (p/'validation'/'metadata.jsonl').write_text('{"file_name"'), 'JSON'),
])
def test_broken_folders(tmp_path, write, spoil, says):
    write(tmp_path); spoil(tmp_path)
    with pytest.raises(SoundlmError, match=says): C.pairs_of(tmp_path)

def test_no_layout(tmp_path):
    with pytest.raises(SoundlmError, match='LibriSpeech'): C.pairs_of(tmp_path)
    with pytest.raises(SoundlmError, match='none of that name'): C.pairs_of(tmp_path/'no')

@pytest.mark.parametrize('row', [dict(text='hi'), dict(text='hi', audio='no.wav'), dict(text='hi', audio=dict(path=None, bytes=None))])
def test_rows_without_sound(row):
    with pytest.raises(AudioError): C.utterance(row)

def test_unusable_sound():
    with pytest.raises(AudioError, match='0 samples'): C.utterance(dict(text='hi', audio=[])).wav()
    with pytest.raises(AudioError, match='NaN'): C.utterance(dict(text='hi', audio=[0., float('nan')])).wav()
    with pytest.raises(AudioError, match='decode'): C.utterance(dict(text='hi', audio=dict(bytes=b'no'))).wav()

def test_hub_streams_bytes(tmp_path):
    from datasets import Audio, Dataset, IterableDataset
    data = [record(tmp_path/f'{i}.flac', i, 16_000).read_bytes() for i in range(3)]
    def rows():
        for i in range(3): yield dict(sound=dict(bytes=data[i], path=f'{i}.flac'), sentence=texts[i], client_id=f'p{i}')
    found = list(C.from_hub(IterableDataset.from_generator(rows), split='test', audio_column='sound', limit=2))
    assert [(u.text, u.speaker, u.split) for u in found] == [(texts[0], 'p0', 'test'), (texts[1], 'p1', 'test')]
    assert found[0].wav().shape == (1, 12_000)
    typed = Dataset.from_list(list(rows())).cast_column('sound', Audio(decode=True)).to_iterable_dataset() # as on the hub: it would like to decode
    assert [u.wav().shape for u in C.from_hub(typed, audio_column='sound')] == [(1, 12_000)]*3
    with pytest.raises(SoundlmError, match='sentence'): C.from_hub(typed, text_column='words', audio_column='sound')
    with pytest.raises(SoundlmError, match='audio_column'): C.from_hub(typed)

# texts, and who is held out
@some
@given(st.text(max_size=60))
def test_plain_is_idempotent(s): assert C.plain(C.plain(s)) == C.plain(s)

@some
@given(st.text(max_size=40))
def test_spell_reads_or_refuses(s):
    try: out = C.spell(s)
    except SoundlmError: return
    assert set(out) <= C.letters | {' '} and C.plain(out) == out

@some
@given(n=st.integers(2, 60), held=st.floats(.01, .9), seed=st.integers(0, 99), extra=st.integers(0, 20))
def test_held_out_by_hash(n, held, seed, extra):
    keys = [f'p{i}' for i in range(n)]
    out = C.held_keys(keys, held, seed)
    assert 0 < len(out) < n and out == C.held_keys(keys[::-1]*2, held, seed)
    assert {k for k in keys if C.is_held(k, held, seed)} - C.held_keys(keys + [f'q{i}' for i in range(extra)], held, seed) == set() or len(out) == n - 1

def test_split_pairs():
    items = [C.Utterance(str(i), f'text {"abcdefgh"[i % 8]}', None, speaker=f's{i % 5}') for i in range(40)]
    for by, key in (('speaker', lambda u: u.speaker), ('text', lambda u: u.text)):
        a, b = C.split_pairs(items, by, .3)
        assert len(a) + len(b) == 40 and not {key(u) for u in a} & {key(u) for u in b}
        assert {u.split for u in a} == {'train'} and {u.split for u in b} == {'valid'}

# rows of ids, on made-up codes
facts = dict(codec='mel_24khz', codec_sha='', codebooks=3, codebook_size=4096, strides=[4, 2, 1], schema_version=1, shard=1, clips=0)
def store_of(audio, rows, seed=0):
    "A token store in memory: (text, frames, speaker, clean) a row"
    g = np.random.default_rng(seed)
    codes = [[g.integers(4096, size=t*2**k).astype(np.int16) for k in range(3)] for _, t, *_ in rows]
    books = [c for row in codes for c in row]
    values = np.concatenate(books) if books else np.zeros(0, np.int16)
    ends = np.concatenate([[0], np.cumsum([len(b) for b in books])]).astype(np.int64)
    columns = dict(id=[str(i) for i in range(len(rows))], split=['train']*len(rows), text=[r[0] for r in rows], caption=[None]*len(rows), language=['en']*len(rows),
                   speaker=[r[2] for r in rows], attributes=[json.dumps(dict(clean=r[3])) for r in rows])
    return TokenStore(facts | dict(codec_sha=audio.codec.sha), columns, values, np.arange(len(rows) + 1)*3, ends, np.arange(len(rows)))

def quiet(*a, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', SoundlmWarning)
        return D.MultimodalDataset(*a, **kw)

word = st.sampled_from(['yes', 'no', 'turn on the light', 'grüße', 'seven', 'artificial intelligence'])
rows_ = st.lists(st.tuples(st.lists(word, max_size=6).map(' '.join), st.integers(1, 140), st.sampled_from(['anna', 'norbert', 'ed', None]), st.booleans()), min_size=1, max_size=6)

@some
@given(rows=rows_, most=st.integers(30, 900), audio_weight=st.floats(0, 2), text_weight=st.floats(0, 6), given_=st.floats(0, 1), join=st.booleans())
def test_sequences(text, audio, rows, most, audio_weight, text_weight, given_, join):
    m = text.markers
    try: d = quiet(store_of(audio, rows), text, audio, max_length=most, audio_weight=audio_weight, text_weight=text_weight, given=given_, join=float(join))
    except SoundlmError as e: assert 'is left' in str(e); return
    for k, (i, task) in enumerate(d.index):
        other = d.partner(i, task, rng('p', k))
        e = d.example(i, task, other)
        ids, w, slot = e['ids'], e['weight'], e['slot']
        assert len(ids) == len(w) == len(slot) <= most
        sound = (ids >= audio.base) & (ids < audio.base + audio.vocab_size)
        at = int(np.flatnonzero(ids == m['audio'])[0])
        ended = m['/audio'] in ids
        n = int(sound.sum())
        assert ids[0] == m[task] and n % audio.period == 0 and sound[at + 1:at + 1 + n].all() # whole frames, in one piece
        assert n <= audio.max_frames*audio.period
        full = np.concatenate([d.ids[i], d.ids[other]]) if other is not None else d.ids[i]
        assert (ids[sound] == full[:n]).all() and ended == (n == len(full)) # what is cut does not end
        answers = slice(at + 1, at + 1 + n + ended)
        assert (slot[answers] == np.arange(n + ended) % audio.period).all() and (np.delete(slot, np.r_[answers]) == -1).all()
        for s in range(audio.period): assert all(audio.legal(s)[o] for o in ids[answers][slot[answers] == s])
        words = np.concatenate([d.words[i], d.words[other]]) if other is not None else d.words[i]
        a, t, g = np.float32(audio_weight), np.float32(text_weight), np.float32(given_)
        if task == 'speak':
            assert (ids[at - len(words):at] == words).all()
            assert (text.id('<|voice:anna|>') in ids) == (rows[i][2] == 'anna' and other is None)
            assert np.allclose(w[:at + 1], t*g) and np.allclose(w[answers], a)
        else:
            assert ended and ids[-1] == m['end'] and (ids[at + n + 2:-1] == words).all()
            assert np.allclose(w[at + 1:answers.stop], a*g) and np.allclose(w[answers.stop:], t)
        if other is not None: assert rows[other][2] == rows[i][2] is not None and task == 'speak'

def test_known_lengths(text, audio):
    "Joins are decided by row, so that buckets hold what they were asked for; a side of a split keeps to itself"
    rows = [('yes', 2 + i % 17, f'norbert{i % 4}', True) for i in range(120)]
    d = quiet(store_of(audio, rows), text, audio, max_length=400, join=.6)
    assert 20 < len(d.joined) < 110 and d.joined == d.joins() == quiet(store_of(audio, rows), text, audio, max_length=400, join=.6).joined
    for k, (i, task) in enumerate(d.index):
        o = d.joined.get((i, task))
        assert 0 <= d.length(k) - len(d[k]['ids']) < 8 and len(d[k]['ids']) <= 400
        if o is not None: assert task == 'speak' and rows[o][2] == rows[i][2] and len(d.ids[i]) + len(d.ids[o]) < 320 and d[k]['ids'][-1] == text.markers['/audio']
    b = D.Buckets(d, 2000)
    masks = [b.batch([i], rng(9))['mask'] for i in range(len(b))]
    assert all(m.numel() <= 2000 for m in masks) and sum(m.sum() for m in masks)/sum(m.numel() for m in masks) > .9
    for side in d.split('speaker', .5): assert {o for o in side.joined.values()} <= {i for i, _ in side.index} and side.joined
    assert not quiet(store_of(audio, rows), text, audio).joined

@some
@given(rows=rows_.filter(lambda r: any(t and n <= 60 for t, n, *_ in r)), share=st.floats(0, 1), factors=st.lists(st.floats(0, 9), min_size=7, max_size=7))
def test_slot_weights_and_unprompted(text, audio, rows, share, factors):
    kw = dict(max_length=700, join=1., text_weight=3., given=0.)
    a, b = (quiet(store_of(audio, rows), text, audio, **kw, **more) for more in ({}, dict(slot_weights=tuple(factors), unprompted=share)))
    assert a.index == b.index and a.joined == b.joined
    for k, (i, task) in enumerate(a.index):
        x, y = a[k], b[k]
        at = int((x['ids'] == text.markers['audio']).argmax())
        bare = task == 'speak' and rng('drop', i).random() < share
        keep = np.r_[0, at:len(x['ids'])] if bare else np.r_[:len(x['ids'])]
        assert (y['ids'] == x['ids'][keep]).all() and (y['slot'] == x['slot'][keep]).all()
        want = np.where(x['slot'] >= 0, x['weight']*np.float32(factors)[x['slot']], x['weight'])[keep]
        assert np.allclose(y['weight'], want) and (not bare or y['ids'][:2].tolist() == [text.markers['speak'], text.markers['audio']])
    with pytest.raises(SoundlmError, match='one for each of the 7'): quiet(store_of(audio, rows), text, audio, slot_weights=(1.,)*6)

@pytest.mark.parametrize('most', [1, 3, 5])
def test_words(most):
    c = C.Words('train', 60, seed=2, most=most, nameless=.3)
    items = [c[i] for i in range(60)]
    assert {len(u.text.split()) for u in items} == set(range(1, most + 1)) and [u.text for u in items[:5]] == [C.Words('train', 5, 2, most, nameless=.3)[i].text for i in range(5)]
    for u in items: assert set(u.text.split()) <= set(C.vocabulary(u.language)) and (u.speaker in C.synthetic or not C.unseen(u.speaker)) and u.attributes == C.ordinary | dict(clean=True)
    assert len({u.id for u in items}) == 60 and [u.text for u in items] != [C.Words('valid', 60, 2, most)[i].text for i in range(60)]
    with pytest.raises(IndexError): c[60]
    with pytest.raises(SoundlmError, match='train, valid or test'): C.Words('dev')

def test_draws_stay_as_they_were():
    "Corpora are functions of their numbers: what was tokenized once must mean the same now"
    assert [C.Sentences('train', 9)[i].text for i in range(3)] == ['thursday brown tonight brother', 'the rain of the name is very young', 'i need the quick snow']
    w = C.Words('train', 9, seed=5, nameless=.2)
    assert [(w[i].speaker, w[i].text) for i in range(3)] == [('carol', 'like bathroom'), ('m8', 'john'), ('anna', 'house friday ai')]

@some
@given(rows=rows_.filter(lambda r: any(t for t, *_ in r)), positions=st.integers(200, 3000))
def test_batches(text, audio, rows, positions):
    assume(any(t and (n <= audio.max_frames or ok) for t, n, _, ok in rows)) # something is left of it
    d = quiet(store_of(audio, rows), text, audio, max_length=2000)
    buckets = D.Buckets(d, positions)
    assert sorted(i for b in buckets.batches for i in b) == list(range(len(d)))
    for i in range(len(buckets)):
        b = buckets.batch([i])
        assert b['mask'].numel() <= positions or len(b['mask']) == 1
        lengths = b['mask'].sum(1)
        assert lengths.tolist() == [len(d[j]['ids']) for j in buckets.batches[i]]
        assert (b['ids'][~b['mask']] == text.markers['pad']).all() and (b['weight'][~b['mask']] == 0).all() and (b['slot'][~b['mask']] == -1).all()

def test_loader(text, audio):
    d = quiet(store_of(audio, [('yes', 3 + i, 'anna', True) for i in range(9)]), text, audio)
    one, two = (torch.cat([b['ids'][:, 0] + b['mask'].sum(1) for b in D.loader(d, 4, True, seed=s)]) for s in (0, 1))
    again = torch.cat([b['ids'][:, 0] + b['mask'].sum(1) for b in D.loader(d, 4, True, seed=0)])
    assert torch.equal(one, again) and not torch.equal(one, two) and len(D.loader(d, 4)) == 5

def test_split_keeps_sides_apart(text, audio):
    rows = [(f'{w} {"abcdefgh"[i % 8]}', 4, f's{i % 6}', True) for i, w in enumerate(['yes', 'no']*12)]
    d = quiet(store_of(audio, rows), text, audio, join=1.)
    a, b = d.split('speaker', .3)
    assert len(a) + len(b) == len(d) and not set(a.by_voice) & set(b.by_voice)
    mine = {i for i, _ in b.index}
    assert all(b.partner(i, 'speak', rng(i, j)) in mine for i in mine for j in range(5))
    a, b = d.split('text', .3)
    assert not {d.rows[i]['text'] for i, _ in a.index} & {d.rows[i]['text'] for i, _ in b.index}

# what is refused
def test_refusals(text, audio):
    good = [('yes', 3, 'anna', True)]
    for tasks in (('sing',), (), ('speak', 'sing')):
        with pytest.raises(SoundlmError, match='tasks'): quiet(store_of(audio, good), text, audio, tasks=tasks)
    with pytest.raises(SoundlmError, match='at least one'): quiet([], text, audio)
    with pytest.raises(SoundlmError, match='is left'): quiet(store_of(audio, [('', 3, 'anna', True)]), text, audio)
    with pytest.raises(TokenError, match='side by side'): quiet(store_of(audio, good), text, SNACTokenizer(audio.codec))
    other = store_of(audio, good); other.facts['codec_sha'] = 'ffffffffffff'
    with pytest.raises(TokenError, match='ffffffffffff.*' + audio.codec.sha): quiet(other, text, audio)

def test_four_scales_are_refused(text, audio):
    four = SimpleNamespace(name='snac_44khz', sha='0', strides=(8, 4, 2, 1), codebooks=4, codebook_size=4096, sample_rate=44_100, frame_rate=44_100/4096)
    with pytest.raises(TokenError, match='mel_24khz.*snac_44khz'): quiet(store_of(audio, [('yes', 3, 'anna', True)]), text, beside(text, four))

def test_cache(text, audio, tmp_path):
    pairs = [dict(text='yes', audio=.1*torch.ones(6000), id='a'), dict(text='no', audio=.1*torch.ones(9000), id='b')]
    first = D.make_store(pairs, audio, cache=tmp_path/'c')
    written = [p.stat().st_mtime_ns for p in (tmp_path/'c').glob('*.parquet')]
    second = D.make_store(pairs, audio, cache=tmp_path/'c')
    assert [p.stat().st_mtime_ns for p in (tmp_path/'c').glob('*.parquet')] == written and (first.raw(1)[2] == second.raw(1)[2]).all()
    with pytest.raises(TokenError, match='another folder'): D.make_store([pairs[0] | dict(text='yes!'), pairs[1]], audio, cache=tmp_path/'c') # a corrected text
    facts = json.loads((tmp_path/'c'/'store.json').read_text())
    (tmp_path/'c'/'store.json').write_text(json.dumps(facts | dict(codec='snac_24khz-tiny', codec_sha='abc')))
    with pytest.raises(TokenError, match='snac_24khz-tiny.*mel_24khz'): D.make_store(pairs, audio, cache=tmp_path/'c')

def test_preprocessor(text, audio, tmp_path):
    seen = []
    def hook(path): seen.append(path.name); return np.full(4096, .1)
    record(tmp_path/'0.wav', 0)
    d = quiet([dict(text='yes', audio=tmp_path/'0.wav'), dict(text='no', audio=torch.ones(8192))], text, audio, hook)
    assert seen == ['0.wav'] and [len(o) for o in d.ids] == [14, 28]
    with pytest.raises(AudioError): quiet([dict(text='yes', audio=tmp_path/'0.wav')], text, audio, lambda path: np.zeros(0))

# what a strict reader found
@pytest.mark.parametrize('bad', ['🙂 yes', '你好 yes', 'yes €', 'black & white', 'да', '\u263a\ufe0f yes'])
def test_unknown_characters_are_named(text, audio, bad):
    with pytest.raises(TokenError, match='write it as it is said'): quiet(store_of(audio, [(bad, 3, 'anna', True)]), text, audio)

def test_spelling_is_plain_where_training_reads():
    for c in (C.Sentences('train', 300), C.Words('train', 200, seed=5, nameless=.2)):
        for i in range(len(c)): assert D.spelling(c[i].text) == C.plain(c[i].text)
    for w in (*C.vocabulary('de'), *C.vocabulary('en'), *C.digits, 'Ärger, ÜBER Öl!', "don’t"): assert D.spelling(w) == C.plain(w)
    assert D.spelling('') == D.spelling('…') == ''

def test_cut_speech_is_counted(text, audio):
    with pytest.warns(SoundlmWarning, match='Cut at the end: 1 that are spoken'): D.MultimodalDataset(store_of(audio, [('yes', 200, 'anna', True), ('no', 3, 'ben', True)]), text, audio, tasks='speak', max_length=100)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        D.MultimodalDataset(store_of(audio, [('yes', 13, 'anna', True)]), text, audio, tasks='speak', max_length=13*7 + 5) # tags, words and three markers just fit

def hook(path): return torch.ones(1, 4096)
def test_cache_sees_sound(text, audio, tmp_path):
    "Other samples, a file of the same size, another preprocessor: none of them is what was tokenized"
    import os
    pairs = [dict(text='yes', audio=.1*torch.ones(6000), id='a')]
    D.make_store(pairs, audio, cache=tmp_path/'c')
    with pytest.raises(TokenError, match='another folder'): D.make_store([pairs[0] | dict(audio=.2*torch.ones(6000))], audio, cache=tmp_path/'c')
    file = [dict(text='yes', audio=record(tmp_path/'0.wav', 0))]
    D.make_store(file, audio, hook, cache=tmp_path/'f')
    D.make_store(file, audio, hook, cache=tmp_path/'f')
    with pytest.raises(TokenError, match='another folder'): D.make_store(file, audio, cache=tmp_path/'f')
    os.utime(tmp_path/'0.wav', ns=(1, 1))
    with pytest.raises(TokenError, match='another folder'): D.make_store(file, audio, hook, cache=tmp_path/'f')
    loud = 2.
    def other(path): return loud*hook(path)
    for f in (lambda path: hook(path), other):
        with pytest.raises(SoundlmError, match='plain function'): D.make_store(file, audio, f, cache=tmp_path/'g')
        assert D.make_store(file, audio, f).frames(0) == 2 and not (tmp_path/'g').exists()

def test_preprocessor_is_never_ignored(text, audio, tmp_path):
    file = [C.utterance(dict(text='yes', audio=record(tmp_path/'0.wav', 0)))]
    class Corpus:
        def __len__(self): return 1
        def __getitem__(self, i): return file[i]
    assert D.make_store(Corpus(), audio, hook).frames(0) == 2
    with pytest.raises(SoundlmError, match='with a path'): D.make_store(C.Words('train', 1), audio, hook)
    kept = D.make_store(file, audio, cache=tmp_path/'s')
    for store in (kept, tmp_path/'s'):
        with pytest.raises(SoundlmError, match='nothing is left'): D.make_store(store, audio, hook)
