"One language model that speaks and listens. The five names below load their modules when they are first used, so that `import soundlm.omni` stays light"
# Written by hand: nbdev makes an `__init__.py` only where a package has none, and leaves this one alone.

_where = dict(SNACTokenizer='tokenizer', MultimodalDataset='dataset', MultimodalLLM='model',
              MultimodalPretrainingConfig='trainer', MultimodalPretrainingTrainer='trainer')
__all__ = list(_where)

def __getattr__(name):
    "A class by its name, from the module that has it"
    from importlib import import_module
    if name in _where: return getattr(import_module(f'.{_where[name]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

def __dir__(): return sorted([*globals(), *_where])
