from django.db import migrations, models

ROWS = (1, 2, 3)


def model(name, /, **fields):
    columns = {
        "id": models.BigAutoField(primary_key=True),
        "version": models.IntegerField(default=1),
        **fields,
    }
    return migrations.CreateModel(name, list(columns.items()))


def fill(apps, editor):
    values = {
        "Grown": {"name": str},
        "Renamed": {"title": str},
        "Retyped": {"code": int},
        "Widened": {"text": lambda row: None if row == 2 else str(row)},
        "Scaled": {"price": int},
        "Switched": {"is_on": lambda row: row % 2},
        "Recoded": {"word": str, "flag": lambda row: row % 2},
        "Dropped": {"name": str},
        "Remade": {"name": str},
        "Told": {"name": str},
    }
    for name, columns in values.items():
        rows = apps.get_model("rolling", name).objects.using(editor.connection.alias)
        for row in ROWS:
            rows.create(pk=row, **{column: make(row) for column, make in columns.items()})


class Migration(migrations.Migration):
    initial = True
    operations = [
        model("Grown", name=models.CharField(max_length=20)),
        model("Renamed", title=models.CharField(max_length=20)),
        model("Retyped", code=models.IntegerField()),
        model("Widened", text=models.CharField(max_length=10, null=True)),
        model("Scaled", price=models.DecimalField(max_digits=8, decimal_places=1)),
        model("Switched", is_on=models.IntegerField()),
        model("Recoded", word=models.CharField(max_length=20), flag=models.IntegerField()),
        model("Dropped", name=models.CharField(max_length=20)),
        model("Remade", name=models.CharField(max_length=20)),
        model("Told", name=models.CharField(max_length=20)),
        migrations.RunPython(fill),
    ]
