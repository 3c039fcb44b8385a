#!/usr/bin/env python3
"""Makes the reference vectors that the encoder is tested against, with sentence-transformers and torch.

    python3 -m venv venv
    venv/bin/pip install sentence-transformers==6.2.0
    venv/bin/python make.py MODEL_FOLDER

MODEL_FOLDER holds the complete all-MiniLM-L6-v2 (with modules.json), unpacked. Writes, beside this script,
sentences.json (the texts, in order) and vectors.bin (their vectors: little-endian f32, 384 numbers each).
"""

import json
import pathlib
import sys

import numpy
from sentence_transformers import SentenceTransformer

STEP = "Open the settings, choose your address and confirm the change with the code that we send you. "

SENTENCES = [
    # Plain questions, short and long.
    "Where is my order?",
    "How do I return a jacket that I bought last month but never wore?",
    "return",
    "I want my money back",
    "Can you please tell me which payment methods are accepted in your online shop and whether I can pay in rates?",
    "What's the difference between standard and express delivery, and how much does each of them cost?",
    "do you ship to norway",
    "I'd like to cancel it, but I can't find the button!",
    "The parcel arrived damaged: the box was open, one glass was broken and the manual was missing.",
    "Thank you so much, that's all.",
    # Letter case.
    "WHERE IS MY ORDER?",
    "wHeRe Is My OrDeR?",
    "CANCEL CANCEL CANCEL",
    # Numbers, amounts, identifiers.
    "Order #4711-22-0815 has not arrived",
    "order 943026083092542",
    "It was $1,299.99 instead of 1.299,99 €, i.e. 15% more.",
    "1234567890",
    "Call me at +1-555-0142 between 9:00 and 18:00 on 2026-03-02.",
    "3/4 + 1/8 = 7/8",
    # Addresses.
    "Please write to jane.doe+orders@mail.shop.example, not to info@shop.example.",
    "https://shop.example/account/orders?id=42&sort=desc#top",
    # Empty or nearly so.
    "",
    " ",
    "\n\t\n",
    "?",
    "a",
    "...",
    "?!?!?! --- ;;; ((()))",
    "!",
    # Beyond ASCII.
    "¿Dónde está mi pedido? Lo necesito mañana.",
    "Wie ändere ich meine Lieferadresse? Die Straße heißt jetzt Ölmühlweg.",
    "Où est ma commande ? Ça fait déjà trois semaines…",
    "Где мой заказ?",
    "我的订单在哪里？",
    "我想退货，但是找不到按钮。Order 42，谢谢",
    "注文はどこですか",
    "أين طلبي؟",
    "ההזמנה שלי לא הגיעה",
    "मेरा ऑर्डर कहाँ है",
    "ｆｕｌｌ ｗｉｄｔｈ ｔｅｘｔ ａｎｄ ﬁrst ligature",
    "Zalgo: h̷e̷l̷p̷ m̷e̷",
    # Emoji and symbols.
    "🎉🎉🎉",
    "My order is late 😡 please help 🙏🏽",
    "★★★★★ best shop ever ❤️",
    # Markup and the tokenizer's own words.
    "<script>alert('order')</script> & \"quotes\" \\ backslash",
    "[CLS] [SEP] [MASK] [PAD] [UNK]",
    "line one\nline two\r\n\tline three",
    # Long words and long texts: the encoder sees 256 word pieces.
    "Donaudampfschifffahrtsgesellschaftskapitän " + "x" * 150,
    STEP * 12,
    "First of all, hello. " + "I have been waiting for my parcel since Monday, and nobody answers the phone. " * 40,
]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    assert len(SENTENCES) == 50 and len(set(SENTENCES)) == 50, len(SENTENCES)
    here = pathlib.Path(__file__).parent
    model = SentenceTransformer(sys.argv[1], device="cpu")
    assert model.max_seq_length == 256, model.max_seq_length
    # One at a time: no padding takes part in the reference.
    vectors = numpy.stack([model.encode(text, normalize_embeddings=True) for text in SENTENCES])
    assert vectors.shape == (50, 384), vectors.shape
    (here / "sentences.json").write_text(json.dumps(SENTENCES, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (here / "vectors.bin").write_bytes(vectors.astype("<f4").tobytes())


if __name__ == "__main__":
    main()
