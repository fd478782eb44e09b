"""A service around a pickled model in a few lines: MODEL=birds.joblib uvicorn app:app"""

import os

import joblib
from fastapi import FastAPI, HTTPException, UploadFile

import sktl

model = joblib.load(os.environ["MODEL"])  # runs what is in the file: one that you made yourself
app = FastAPI()


@app.post("/predict")
def predict(file: UploadFile):  # no "async": FastAPI then predicts in a thread, and goes on answering
    try:
        (proba,) = model.predict_proba([file.file.read(20_000_000)])
    except sktl.exceptions.InputError as error:
        raise HTTPException(422, str(error)) from error
    return {str(name): round(float(value), 4) for name, value in zip(model.classes_, proba, strict=True)}
