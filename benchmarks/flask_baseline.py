"""What tutorials ship: the same checkpoint behind Flask's development server, one request at a time per thread.

python benchmarks/flask_baseline.py --model examples/bert_intent/model --port 8081
"""

from __future__ import annotations

import argparse
from typing import Any

from flask import Flask, request


def create_app(model_folder: str) -> Flask:
    """``/predict?query=…`` as the service answers it, with one forward pass for each request."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
    # float32 as the service has on a CPU: half precision would only make this slower there.
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        model_folder, local_files_only=True, dtype=torch.float32
    ).eval()
    app = Flask(__name__)

    def predict() -> str:
        inputs = tokenizer(request.args["query"], return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
        return str(model.config.id2label[int(logits.argmax())])

    def readyz() -> str:
        return "ready"

    app.add_url_rule("/predict", view_func=predict)
    app.add_url_rule("/readyz", view_func=readyz)
    return app


def main() -> None:
    """Serve on loopback until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    create_app(arguments.model).run(host="127.0.0.1", port=arguments.port)


if __name__ == "__main__":
    main()
