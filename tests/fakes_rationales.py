"""Rationales as chat models of some billion parameters write them after a reference; written by hand."""

from typing import NamedTuple


class Fake(NamedTuple):
    """What was asked, the reference, and what was written after it."""

    source: str
    reference: str
    text: str


DE = "Der alte Fährmann bringt die Gäste bei Hochwasser nicht mehr über den Fluss."
EN = "The old ferryman no longer takes the guests across the river when the water is high."
ZH = "水位高的时候，老船夫不再送客人过河了。"

GOOD: dict[str, Fake] = {
    "a word list": Fake(
        DE,
        EN,
        "- **Fährmann** (m.): ferryman, a person who operates a ferry\n- **Hochwasser** (n.): high water, flood\n"
        "- **nicht mehr**: no longer\n- **über den Fluss bringen**: to take across the river",
    ),
    "notes with headings": Fake(
        DE,
        EN,
        "### Notes\n\n1. **Tense**: The German present tense (*bringt*) is used for a habitual action, so the simple "
        'present is right in English.\n2. **"bei Hochwasser"**: literally "at high water"; a clause with *when* '
        "reads more naturally.\n\n### Alternative\n\n> In times of flood the old ferryman does not carry the guests "
        "over the river any more.\n\nI hope this helps! Let me know if you have any questions.",
    ),
    "a table": Fake(
        DE,
        EN,
        "| German | English | Part of speech |\n| ------ | ------- | -------------- |\n| alt | old | adjective |\n"
        "| der Gast | the guest | noun |\n| der Fluss | the river | noun |\n| bringen | to bring, to take | verb |\n",
    ),
    "a short note": Fake(DE, EN, 'Note: "Hochwasser" can also mean "flood".'),
    "notes in Chinese": Fake(
        EN,
        ZH,
        "说明：\n1. “ferryman”译为“船夫”，也可以译为“摆渡人”。\n2. “no longer”表示情况发生了变化，所以用“不再……了”。\n"
        "3. 原文没有说明是哪一条河，译文保持了同样的模糊性。",
    ),
    "notes in German": Fake(
        EN,
        DE,
        "Anmerkung: Das englische „when the water is high“ wird hier mit „bei Hochwasser“ wiedergegeben, weil das "
        "deutsche Wort knapper ist. Man könnte auch „wenn das Wasser hoch steht“ sagen; das wäre wörtlicher (und z. B. "
        "in einer Erzählung angemessener).",
    ),
    "code": Fake(
        "Write a function that adds two numbers.",
        "def add(a, b):\n    return a + b",
        "You can test it like this:\n\n```python\nassert add(1, 2) == 3\nassert add(-1, 1) == 0\n"
        'assert add("a", "b") == "ab"\n```\n\nThe function works for every type that supports `+`.',
    ),
    "an apology that is rendered": Fake(
        "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
        "I am sorry, but I cannot help you with that.",
        '"I cannot help you with that" is a polite refusal. In German the same is expressed by "Ich kann Ihnen dabei '
        'nicht helfen", where *dabei* refers to the matter in question.',
    ),
    "a user that is spoken of": Fake(
        "Der Benutzer meldet sich an.",
        "The user logs in.",
        "User: der Benutzer, die Benutzerin\nto log in: sich anmelden",
    ),
    "notes in Russian": Fake(
        EN,
        "Старый паромщик больше не перевозит гостей через реку, когда вода стоит высоко.",
        "Примечание: слово «ferryman» можно перевести и как «перевозчик». Выражение «no longer» передаётся словами "
        "«больше не». Порядок слов в русском предложении свободнее, чем в английском.",
    ),
    "facts": Fake(
        "Reykjavík liegt im Südwesten Islands.",
        "Reykjavík lies in the south-west of Iceland.",
        "Reykjavík is the capital and largest city of Iceland. About 140,000 people live there, which is more than a "
        'third of the country\'s population. The name means "Bay of Smoke".',
    ),
    "arithmetic in steps": Fake(
        "Was ist 12 mal 12?",
        "144",
        "Step 1: 12 × 10 = 120\nStep 2: 12 × 2 = 24\nStep 3: 120 + 24 = 144\n\nSo 12 × 12 = 144. Here is the row: "
        "12, 24, 36, 48, 60, 72, 84, 96, 108, 120, 132, 144.",
    ),
}
"""Fit to train on; all of them ended by themselves."""

BAD: dict[str, dict[str, Fake]] = {
    "degenerate": {
        "a sentence over and over": Fake(DE, EN, "The ferryman is old. " * 12),
        "marks without end": Fake(DE, EN, "Note" + "!" * 300),
        "a loop in Chinese": Fake(EN, ZH, "这句话的意思是船夫很老。" * 8),
        "a list that goes on": Fake(
            DE, EN, "\n".join(f"{n}. The word is a noun in the sentence." for n in range(1, 60))
        ),
    },
    "language": {
        "French": Fake(
            DE, EN, "Remarque : le mot allemand « Hochwasser » désigne une crue, et la phrase est au présent."
        ),
        "Chinese": Fake(DE, EN, "注意：“Hochwasser”指的是洪水，这里译为高水位，也可以译为洪水时期。"),
        "Russian": Fake(DE, EN, "Здесь слово Hochwasser означает половодье, а предложение стоит в настоящем времени."),
    },
    "retranslation": {
        "once more": Fake(
            DE, EN, "The old ferryman no longer takes the guests across the river when the water is too high."
        ),
        "a copy": Fake(EN, ZH, ZH),
    },
    "refusal": {
        "English": Fake(DE, EN, "I'm sorry, but I can't help with that request. Please ask me something else."),
        "as a model": Fake(DE, EN, "As an AI language model, I do not have opinions on ferrymen and cannot say more."),
        "German": Fake(EN, DE, "Entschuldigung, aber ich kann Ihnen bei dieser Anfrage leider nicht helfen."),
        "French": Fake(EN, DE, "Désolé, mais je ne peux pas vous aider à ce sujet."),
        "Chinese": Fake(EN, ZH, "抱歉，我无法帮助您完成这个请求。"),
        "Russian": Fake(EN, DE, "Извините, но я не могу помочь вам с этим запросом."),
        "Japanese": Fake(EN, ZH, "申し訳ありませんが、そのご要望にはお応えできません。"),
        "Icelandic": Fake(EN, DE, "Því miður get ég ekki aðstoðað þig, ég get ekki hjálpað við þetta."),
        "Spanish": Fake(EN, DE, "Lo siento, pero no puedo ayudarte con esa solicitud."),
    },
    "leaked_template": {
        "ChatML": Fake(DE, EN, "Note: literal.<|im_end|>\n<|im_start|>assistant\nYes."),
        "Llama 2": Fake(DE, EN, "Note: literal. [/INST] Now the next one. [INST]"),
        "DeepSeek": Fake(DE, EN, "Good.<｜end▁of▁sentence｜>"),
        "Alpaca": Fake(DE, EN, "Good.\n\n### Instruction:\nTranslate another one."),
        "the instruction": Fake(
            DE, EN, "Translate the following text from German into English.\n\nDas Boot liegt am Ufer.\n\nThe boat."
        ),
    },
    "new_turn": {
        "a user": Fake(DE, EN, "That is all.\n\nUser: Thanks! Can you translate one more?\nAssistant: Of course."),
        "Vicuna": Fake(DE, EN, "### Human: And in French?"),
        "in bold": Fake(DE, EN, "Done.\n**User:** And in French?"),
        "Chinese": Fake(EN, ZH, "好的。\n用户：请再翻译一句。"),
        "Russian": Fake(EN, DE, "Готово.\nПользователь: А теперь по-французски?"),
    },
}
"""Filter → texts that it must find, each by what is wrong with it."""
