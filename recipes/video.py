"""Predict the next frames of clips, describe clips, or classify them, with the Trainer: new models or checkpoints.

    python recipes/video.py

predicts how handwritten digits move on, and bounce, in frames of 16 x 16 pixels, as configs/video_frames.yaml says;
configs/video_captions.yaml describes them, configs/video_gestures.yaml classifies the paths of a fingertip. For your
own clips, with every flag of transformers' TrainingArguments; a YAML file may come first:

    python recipes/video.py --task gestures --train_file clips/train --validation_file clips/val \
        --test_file clips/test --image_size 64 --num_frames 16 --output_dir outputs/clips

A file is a NumPy archive, a folder of clips (folders of images, or video files) with metadata.csv
(file_name,label or file_name,caption) or with a folder for each class, or with --coordinates 2 a CSV file of points
(label,x1,y1,x2,y2). --model_name_or_path also takes classifiers such as VideoMAE.
"""

from functools import partial
from pathlib import Path

from hfseq.tasks.arguments import VideoArguments
from hfseq.tasks.video import TASKS, video_task
from hfseq.training import cli
from hfseq.training.arguments import GenerationArguments, VideoModelArguments
from hfseq.training.run import begin, finish, load, make_trainer, new_model, search

DEMO = Path(__file__).parent / "configs" / "video_frames.yaml"
ARGUMENTS = (VideoModelArguments, VideoArguments, GenerationArguments)


def main(argv: list[str] | None = None) -> None:
    """Run the recipe with the arguments `argv`, by default those of the process."""
    # 1. Arguments. Nothing is written before everything that can be checked has been.
    run = begin(ARGUMENTS, argv, TASKS, demo=DEMO, unless=("--task",))

    # 2. Data: clips, with a class or a caption each if the task needs one.
    task = run.read(video_task(run.model, run.data, run.args))

    # 3. The model, which reads frames of pixels or points as the training clips have, and the tokenizer of captions.
    processor = task.new_processor(run.model)
    model, processor, _ = load(run, task, tokenizer=processor)
    task.encode(model, processor, run.log)

    # 4. Training, or a search for the hyperparameters.
    trainer = make_trainer(run, task, model, processor)
    if run.args.hp_search:
        return search(run, task, trainer, partial(new_model, run, task, tokenizer=processor))
    if run.train:
        trainer.train_and_save(run.checkpoint, run.args.average_checkpoints, run.log)

    # 5. The final test beside the baselines, and the reports.
    if run.predict:
        split = task.test_split
        raw, _ = task.predict(trainer.model, split, **task.test_options())
        finish(run, task, split, raw, model=trainer.model, history=trainer.state.log_history)


if __name__ == "__main__":
    cli.run(main)
