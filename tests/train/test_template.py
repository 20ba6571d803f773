import pytest
from transformers import AutoTokenizer

from eagle.errors import DataError
from eagle.train.data.sources import Conversation, Passage
from eagle.train.data.template import Encoder

CHAT = (
    ("user", "Hi there"),
    ("assistant", "Hello!\n\n1. One"),
    ("user", "More"),
    ("assistant", "Ok"),
)


@pytest.fixture(scope="module")
def tokenizer():
    from eagle.assets import model_folder

    return AutoTokenizer.from_pretrained(model_folder())


@pytest.fixture
def with_template(tokenizer):
    original = tokenizer.chat_template

    def change(template):
        tokenizer.chat_template = template
        return tokenizer

    yield change
    tokenizer.chat_template = original


def said(encoder, tokenizer, *messages):
    """Return what an encoder takes for an assistant's, piece by piece."""
    (text,) = encoder.encode([Conversation("a", messages)])
    pieces, run = [], []
    for token, answered in zip(
        [*text.tokens.tolist(), 0], [*text.answers.tolist(), False], strict=True
    ):
        if answered:
            run.append(token)
        elif run:
            pieces.append(tokenizer.decode(run))
            run = []
    return pieces


INST = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
FORGETFUL = (  # renders all but the last answer in another way, as templates with thoughts do
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}(thought){% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('no') }}{% endif %}" + INST

pytestmark = pytest.mark.embedded


def test_marks_answers_with_their_end_and_nothing_else(tokenizer):
    encoder = Encoder(tokenizer, [2], 1000)
    assert said(encoder, tokenizer, *CHAT) == ["Hello!\n\n1. One<|im_end|>", "Ok<|im_end|>"]


def test_tokens_are_those_of_the_chat_template(tokenizer):
    (text,) = Encoder(tokenizer, [2], 1000).encode([Conversation("a", CHAT)])
    messages = [{"role": role, "content": content} for role, content in CHAT]
    whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert text.tokens.tolist() == whole


def test_works_with_another_format(with_template):
    tokenizer = with_template(INST)
    encoder = Encoder(tokenizer, [2], 1000)
    assert said(encoder, tokenizer, *CHAT) == [" Hello!\n\n1. One<|im_end|>", " Ok<|im_end|>"]


def test_leaves_out_answers_that_are_rendered_otherwise_later(with_template):
    tokenizer = with_template(FORGETFUL)
    assert said(Encoder(tokenizer, [2], 1000), tokenizer, *CHAT) == ["(thought)Ok<|im_end|>"]


def test_counts_conversations_without_an_answer(tokenizer):
    encoder = Encoder(tokenizer, [2], 1000)
    silent = Conversation("a", CHAT[:1])
    empty = Conversation("b", ())
    assert len(list(encoder.encode([silent, Conversation("c", CHAT), empty]))) == 1
    assert (encoder.tally.used, encoder.tally.silent, encoder.tally.read) == (1, 2, 3)


def test_counts_conversations_that_the_template_refuses(with_template):
    encoder = Encoder(with_template(STRICT), [2], 1000)
    assert list(encoder.encode([Conversation("a", CHAT[1:])])) == []
    assert encoder.tally.refused == 1


def test_cuts_long_conversations_and_counts_them(tokenizer):
    encoder = Encoder(tokenizer, [2], 40)
    (text,) = encoder.encode([Conversation("a", CHAT)])
    assert len(text.tokens) == len(text.answers) == 40
    assert encoder.tally.cut == 1


def test_answer_that_lies_behind_the_cut_is_no_answer(tokenizer):
    encoder = Encoder(tokenizer, [2], 20)
    assert list(encoder.encode([Conversation("a", CHAT)])) == []
    assert encoder.tally.silent == 1


def test_refuses_a_template_without_a_boundary(with_template):
    backwards = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}"
    encoder = Encoder(with_template(backwards), [2], 1000)
    with pytest.raises(DataError, match="no boundary between question and answer"):
        list(encoder.encode([Conversation("a", CHAT)]))


def test_refuses_a_template_that_makes_text_without_end(with_template):
    tokenizer = with_template("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}")
    with pytest.raises(DataError, match=r"the chat template .*so it is not used"):
        said(Encoder(tokenizer, [0], 64), tokenizer, ("user", "q"), ("assistant", "a"))


def test_refuses_a_tokenizer_without_a_template(with_template):
    encoder = Encoder(with_template(None), [2], 1000)
    with pytest.raises(DataError, match="has no chat template"):
        list(encoder.encode([Conversation("a", CHAT)]))


def test_refuses_a_target_without_a_tokenizer():
    with pytest.raises(DataError, match="has no tokenizer"):
        Encoder(None, [2], 1000)


def test_a_plain_text_needs_no_template_and_counts_whole(with_template):
    tokenizer = with_template(None)
    encoder = Encoder(tokenizer, [2], 1000)
    (text,) = encoder.encode([Passage("a", " One two three.\n")])
    assert tokenizer.decode(text.tokens) == " One two three.\n"
    assert text.answers.all()
    assert encoder.tally.used == 1


def test_a_long_plain_text_goes_on_in_pieces_without_loss(tokenizer):
    encoder = Encoder(tokenizer, [2], 10)
    words = " ".join(map(str, range(40)))
    texts = list(encoder.encode([Passage("a", words), Passage("b", "short text here")]))
    pieces = [text for text in texts if text.group.startswith("a")]
    assert tokenizer.decode([token for text in pieces for token in text.tokens]) == words
    assert [len(text.tokens) for text in pieces[:-1]] == [10] * (len(pieces) - 1)
    assert len({text.group for text in texts}) == len(texts)
    assert (encoder.tally.used, encoder.tally.split, encoder.tally.cut) == (2, 1, 0)


def test_texts_and_conversations_keep_their_order(tokenizer):
    items = [Passage("a", "one two three"), Conversation("b", CHAT), Passage("c", "four five six")]
    texts = list(Encoder(tokenizer, [2], 1000).encode(items))
    assert [text.group for text in texts] == ["a", "b", "c"]


def test_counts_texts_that_hold_nothing(tokenizer):
    encoder = Encoder(tokenizer, [2], 1000)
    assert list(encoder.encode([Passage("a", " \n"), Passage("b", "")])) == []
    assert encoder.tally.silent == 2


def test_counts_answers_that_are_rendered_otherwise_later(with_template):
    tokenizer = with_template(FORGETFUL)
    encoder = Encoder(tokenizer, [2], 1000)
    list(encoder.encode([Conversation("a", CHAT), Conversation("b", CHAT[:2])]))
    assert (encoder.tally.used, encoder.tally.answers, encoder.tally.changed) == (2, 3, 1)


def test_answers_without_words_have_no_loss_and_are_counted(tokenizer):
    encoder = Encoder(tokenizer, [2], 1000)
    messages = (CHAT[0], ("assistant", ""), *CHAT[2:])
    assert said(encoder, tokenizer, *messages) == ["Ok<|im_end|>"]
    tally = encoder.tally
    assert (tally.answers, tally.wordless, tally.changed) == (2, 1, 0)


def test_counts_what_records_have_beside_their_turns(tokenizer):
    encoder = Encoder(tokenizer, [2], 1000)
    talks = [Conversation("a", CHAT, ("x", "x")), Conversation("b", CHAT[:1], ("x", "y"))]
    list(encoder.encode(talks))
    assert encoder.tally.as_dict()["dropped"] == {"x": 3, "y": 1}


def test_the_indent_of_code_is_there_up_to_a_token_that_the_prompt_begins(tokenizer):
    encoder = Encoder(tokenizer, [2], 1000)
    messages = (CHAT[0], ("assistant", "    x = 1\n    y = 2"))
    (text,) = encoder.encode([Conversation("a", messages)])
    assert "assistant\n    x = 1\n    y = 2<|im_end|>" in tokenizer.decode(text.tokens)
    assert said(encoder, tokenizer, *messages) == [" x = 1\n    y = 2<|im_end|>"]
