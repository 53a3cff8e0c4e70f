"""Train a recommender of the next item with the Trainer: LSTM, GRU, RNN, CNN, or any causal Transformer over items.

    python recipes/recommendation.py

learns which function is called next in the functions of Python's standard library and some packages, as
configs/recommendation_demo.yaml says. For your own interactions (`user item [time]`, RecBole's .inter, CSV, JSON lines
or Parquet), with every flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/recommendation.py recipes/configs/recommendation_video_games.yaml --train_file sequences.txt \
        --output_dir outputs/video_games

A user's last item is the test and the last but one validation, or --split time; the right item is ranked among all
items, without those of the history with --filter_seen. Scores (HR@K, NDCG@K, MRR@K) stand beside those of popularity
and of a Markov chain. --model_type gpt2 trains a Transformer; --model_name_or_path continues any causal checkpoint. A
trained model recommends --top_k items after each history of a file:

    python recipes/recommendation.py --do_predict --model_name_or_path outputs/video_games --test_file histories.txt \
        --output_file recommended.tsv
"""

from functools import partial
from pathlib import Path

from hfseq.tasks.arguments import RecommendationArguments
from hfseq.tasks.recommendation import Recommendation
from hfseq.training import cli
from hfseq.training.arguments import RecipeArguments, RecommendationModelArguments
from hfseq.training.predict_files import recommend_file
from hfseq.training.run import begin, finish, load, make_trainer, new_model, search

DEMO = Path(__file__).parent / "configs" / "recommendation_demo.yaml"
ARGUMENTS = (RecommendationModelArguments, RecommendationArguments, RecipeArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, Recommendation, demo=DEMO)
    if run.data.inference_only:
        return recommend_file(run)

    # 2. Data: the items of each user or session, and which of them are to be predicted.
    task = run.read(Recommendation(run.data, run.args))

    # 3. Model and tokenizer, whose tokens are the items.
    tokenizer = task.new_processor(run.model)
    model, tokenizer, _ = load(run, task, tokenizer=tokenizer)
    task.encode(model, tokenizer, run.log)

    # 4. Training, or a search for the hyperparameters.
    trainer = make_trainer(run, task, model, tokenizer)
    if run.args.hp_search:
        return search(run, task, trainer, partial(new_model, run, task, tokenizer=tokenizer))
    if run.train:
        trainer.train_and_save(run.checkpoint, run.args.average_checkpoints, run.log)

    # 5. The final test beside popularity and a Markov chain, perhaps also a mixture, and the reports.
    if run.predict:
        split = task.test_split
        raw, _ = task.predict(trainer.model, split)
        mixed = {"mixed": task.predict_mixed(trainer.model, split, run.log)} if run.data.mix else {}
        finish(run, task, split, raw, model=trainer.model, history=trainer.state.log_history, others=mixed)


if __name__ == "__main__":
    cli.run(main)
